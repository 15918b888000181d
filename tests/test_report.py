"""The page on a run: whole in itself, and true to its numbers."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from vla.common.plots import panels, read_losses, running_mean, training_curve
from vla.errors import InputError
from vla.evaluation.reports.demo_report import Sample, write_report
from vla.evaluation.rollouts.trial import Result

VOID = {"meta", "img", "br", "hr", "link", "input"}
SUMMARY: dict[str, Any] = {
    "success_rate": 0.83,
    "success_ci95": [0.72, 0.91],
    "episodes": 60,
    "wrong_object_rate": 0.05,
    "instruction_swap_success": 0.78,
    "vqa_accuracy": {"color": 0.98, "point": 0.86},
    "real_vqa_accuracy": 0.94,
    "from_scratch": False,
    "minutes": {"record": 2.0, "train": 8.5, "evaluate": 1.5, "total": 12.4},
    "params": 1_240_000,
    "device": "cpu",
    "cores": 2,
    "from_scratch_reference": {"success_rate": 0.41},
}
HISTORY = [{"step": s, "action_error": 1 / s, "vqa": 0.5, "scenes/color": 0.4, "scenes/point": 0.6} for s in (10, 20)]
LOSSES = {"robot": [(s, 5.0 / s) for s in range(1, 30)], "scenes": [(s, 3.0 / s) for s in range(1, 30)]}
GREY = np.full((12, 12, 3), 120, np.uint8)


class Page(HTMLParser):
    """Parses strictly: every element closes in order. Collects the text and what is referred to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.source = path.read_text()
        self.feed(self.source)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def result(seed: int, success: bool, **fields: Any) -> Result:
    values = {"group": "named", "instruction": f"lift thing {seed}", "wrong_object": False, "length": 40, "invalid": 0}
    return Result(seed=seed, success=success, **(values | fields))


def write(out: Path, **fields: Any) -> Page:
    clip = out / "clip.gif"
    Image.fromarray(GREY).save(clip)
    values: dict[str, Any] = {
        "history": HISTORY,
        "losses": LOSSES,
        "results": [result(1, True), result(2, False, wrong_object=True), result(3, True, group="swap")],
        "videos": {"success": clip, "failure": clip},
        "samples": [
            Sample(GREY, "what color is it?", "red", "blue", "color"),
            Sample(GREY, "where is it?", "20 30", "22 31", "point"),
        ],
        "note": "a small run",
    }
    return Page(write_report(out, SUMMARY, **(values | fields)))


def test_the_page_is_whole_in_itself(tmp_path: Path) -> None:
    page = write(tmp_path)
    references = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "poster", "xlink:href", "action")
    ]
    assert len(references) >= 4
    assert all(str(reference).startswith(("data:", "#")) for reference in references)
    assert not re.search(r"@import|url\((?!#)", page.source)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.gif", "report.html"]


def test_the_numbers_are_there(tmp_path: Path) -> None:
    text = write(tmp_path).text.replace("\N{NO-BREAK SPACE}", " ")
    for shown in ("83 %", "72–91 %", "78 %", "5 %", "92 %", "12.4", "1.2 M", "from scratch: 41 %"):
        assert shown in text
    for shown in ("color 98 %", "point 86 %", "easy-vqa 94 %", "record 2.0 min", "other 0.4 min", "a small run"):
        assert shown in text


def test_failures_come_first_and_successes_are_folded(tmp_path: Path) -> None:
    page = write(tmp_path)
    rows = re.findall(r'<tr><td class="number">(\d+)</td><td>(\w+)</td>', page.source)
    assert rows == [("2", "named"), ("1", "named"), ("3", "swapped")]
    assert "failure , wrong object" in page.text
    assert "1 of 3 episodes failed" in page.text


@pytest.mark.parametrize(("success", "missing"), [(True, "failure"), (False, "success")])
def test_a_run_of_one_outcome_says_so(success: bool, missing: str, tmp_path: Path) -> None:
    text = write(tmp_path, results=[result(s, success) for s in range(4)], videos={}).text
    assert f"no {missing} happened in 4 episodes" in text
    assert ("No episode failed." in text) is success


def test_a_run_without_logs_samples_or_swap(tmp_path: Path) -> None:
    bare = SUMMARY | {"instruction_swap_success": None, "real_vqa_accuracy": None, "from_scratch_reference": None}
    page = Page(write_report(tmp_path, bare, history=[], losses={}, results=[], videos={}, samples=[], note=""))
    assert "no training log" in page.text
    assert "easy-vqa" not in page.text and "from scratch:" not in page.text
    assert "None" not in page.text


def test_answers_are_marked_and_points_are_drawn(tmp_path: Path) -> None:
    page = write(tmp_path)
    assert "what color is it? ✗ red true: blue" in page.text
    assert "where is it? ✓ 20 30" in page.text
    rings = [attributes for tag, attributes in page.tags if tag == "circle"]
    assert {(ring["cx"], ring["cy"], ring["r"]) for ring in rings} == {("22", "31", "5")}
    assert "M20 30m" in page.source


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"]), min_size=1))
def test_any_text_is_shown_as_it_is(tmp_path_factory: pytest.TempPathFactory, words: str) -> None:
    out = tmp_path_factory.mktemp("page")
    samples = [Sample(GREY, words, words, "blue", "color")]
    page = write(out, losses={}, history=[], note=words, samples=samples, results=[result(1, True, instruction=words)])
    assert page.text.count(words) >= 4


def test_commands_are_of_what_there_is(tmp_path: Path) -> None:
    out = tmp_path / "a run"
    (out / "rollouts.zarr").mkdir(parents=True)
    text = write(out).text
    assert f"vla view '{out}/rollouts.zarr'" in text
    assert "demos.zarr" not in text


def test_losses_are_read_back_and_a_resumed_run_is_one_curve(tmp_path: Path) -> None:
    for start, end in ((0, 6), (4, 9)):
        with SummaryWriter(str(tmp_path / "tensorboard"), purge_step=start) as writer:
            for step in range(start, end):
                writer.add_scalar("loss/robot", step / 8 + start, step)
                writer.add_scalar("heldout/vqa", 0.5, step)
    assert read_losses(tmp_path) == {"robot": [(s, s / 8 + (4 if s >= 4 else 0)) for s in range(9)]}


def test_a_run_without_logs_has_no_losses(tmp_path: Path) -> None:
    assert read_losses(tmp_path) == {}


def test_accuracy_is_the_mean_over_a_stores_kinds() -> None:
    accuracy = panels({}, HISTORY)[-1]
    assert accuracy.lines == {"scenes": [(10, 0.5), (20, 0.5)]}
    assert len(accuracy.faint) == 2


def test_training_curve_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "training_curve.png"
    training_curve(LOSSES, HISTORY, path)
    with Image.open(path) as image:
        assert image.width > 2 * image.height
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_to_draw_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to draw"):
        training_curve({"robot": []}, [], tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=300))
def test_running_mean_stays_between_the_extremes_and_keeps_the_steps(values: list[float]) -> None:
    points = list(enumerate(values))
    steps, means = zip(*running_mean(points), strict=True)
    assert list(steps) == list(range(len(values)))
    assert min(values) - 1e-6 <= min(means) and max(means) <= max(values) + 1e-6


def test_running_mean_of_a_line_is_the_line_in_the_middle() -> None:
    points = [(s, 2.0 * s) for s in range(200)]
    np.testing.assert_allclose(running_mean(points)[50:150], points[50:150])

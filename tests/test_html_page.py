"""Report pages: their parts, and that no name from data can change a page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla.common.html_page import NUMBER, write_page
from vla.control.recording import Trace
from vla.control.run_report import control_page
from vla.datasets.doctor.doctor_report import write_doctor_page
from vla.datasets.doctor.finding import Advice, Diagnosis, Finding
from vla.datasets.doctor.fixes import Fixes
from vla.datasets.doctor.recording import Recording
from vla.datasets.episodes import EpisodeStore
from vla.datasets.questions import Question
from vla.datasets.tools.store_page import write_store_page
from vla.datasets.tools.vqa_page import write_vqa_page
from vla.datasets.vqa import VqaItem, VqaStore
from vla.evaluation.reports.evaluation_report import evaluation_page
from vla.evaluation.rollouts.result_store import STORE
from vla.evaluation.rollouts.trial import Result
from vla.evaluation.vlm.probes.probe import Case, ProbeResult
from vla.evaluation.vlm.probes.probe_report import write_probe_page
from vla.training.stage_report import StageReport
from vla.types import Episode

NAME = """<q>&"'"""
IMAGE = np.full((8, 10, 3), 99, np.uint8)
SCORE = {"value": 0.5, "ci95": [0.2, 0.8]}


@pytest.mark.parametrize(
    "cell", ["0", "-1.5", "+3", "2.5\N{NO-BREAK SPACE}ms", "4 kB", "98 %", "1e-5", "+3 [-1, +7]", "0.5 – 0.6", "", "–"]
)
def test_a_number_may_have_a_unit_and_an_interval(cell: str) -> None:
    assert NUMBER.fullmatch(cell)


@pytest.mark.parametrize("cell", ["front", "3 cubes", "done", "v2"])
def test_text_is_no_number(cell: str) -> None:
    assert not NUMBER.fullmatch(cell)


def test_columns_of_numbers_are_marked(tmp_path: Path) -> None:
    rows = [("a", "1.0", "0.1 – 2.0", "–"), ("b", "2.0", "1.0 – 3.0", "of two")]
    page = write_page(tmp_path / "a.html", "a", "probes.html", policy="a", probes=[("one", rows, [], [])]).read_text()
    assert '<th>score</th><th class="number">value</th><th class="number">95 % interval</th><th>blank</th>' in page
    assert page.count('<td class="number">') == 4
    empty = write_page(tmp_path / "b.html", "b", "probes.html", policy="b", probes=[("one", [], [], [])])
    assert "<th>value</th>" in empty.read_text()


def evaluation(folder: Path, episode: Episode) -> Path:
    result = Result(0, "named", NAME, False, False, 5, 0)
    trial = {"group": "named", "execution": "naive", "delay": 0.0, "seed": 0}
    with EpisodeStore.create(folder / STORE, episode.embodiment) as store:
        store.append(replace(episode, info=trial))
    rates = {"success_rate": 0.5, "success_ci95": [0.2, 0.8]}
    axis = {"axis": NAME, **rates, "difference": 0.0, "difference_ci95": [-0.1, 0.1], "p": 1.0, "verdict": NAME}
    report: dict[str, Any] = defaultdict(lambda: None, rates, success_always_valid95=[0.1, 0.9], episodes=1)
    report |= {"policy": NAME, "task": NAME, "axes": [NAME], "by_axis": [axis], "vqa": {NAME: 0.5}}
    report["latency"] = [{"execution": NAME, "delay": delay, **rates} for delay in (0.0, 0.2)]
    return evaluation_page(folder, report, [result, replace(result, crash=NAME)])


def probes(folder: Path, episode: Episode) -> Path:
    categories = [{"kind": "kind", "name": NAME, NAME: 0.5}]
    found = ProbeResult({"scores": {NAME: SCORE}, "categories": categories}, {}, {}, (Case(IMAGE, NAME, NAME, NAME),))
    return write_probe_page(folder / "probes.html", NAME, {NAME: found})


def stages(folder: Path, episode: Episode) -> Path:
    report = StageReport(folder, {}, {})
    report.stages = {NAME: {"probes": {NAME: {"scores": {NAME: SCORE}}}}}
    return report._write()


def run(folder: Path, episode: Episode) -> Path:
    times = defaultdict(float)
    camera = {"age": times, "repeated": 0, "dropped": 0}
    report: dict[str, Any] = defaultdict(float, policy=NAME, instruction=NAME, reason=NAME, cameras={NAME: camera})
    report |= {"events": [{"time": 0.0, "count": 1, "what": NAME}], "clamps": {NAME: 1}}
    report |= dict.fromkeys(("observe", "infer", "command", "jitter"), times)
    return control_page(folder, report, Trace(), replace(episode.embodiment, name=NAME))


def doctor(folder: Path, episode: Episode) -> Path:
    with EpisodeStore.create(folder / "a.zarr", episode.embodiment) as store:
        store.append(episode)
        finding = Finding("rate", NAME, (0,), Advice(NAME), subject=NAME)
        diagnosis = Diagnosis(Recording.of(store, [0]), (finding,), ())
        return write_doctor_page(store, diagnosis, Fixes(NAME, {0: 5}, (), ()), str(folder / "a.html"))


def episode_store(folder: Path, episode: Episode) -> Path:
    with EpisodeStore.create(folder / NAME, episode.embodiment) as store:
        store.append(replace(episode, instruction=NAME))
        return write_store_page(store, str(folder / "a.html"))


def question_store(folder: Path, episode: Episode) -> Path:
    store = VqaStore.create(folder / NAME, [NAME], 8, 10)
    store.append([VqaItem({NAME: IMAGE}, (Question(NAME, NAME, NAME, NAME),), NAME)])
    return write_vqa_page(store, str(folder / "a.html"))


class Page(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.values: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.values += [value or "" for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.values.append(data)


@pytest.mark.parametrize("write", [evaluation, probes, stages, run, doctor, episode_store, question_store])
def test_names_are_shown_as_they_are(
    write: Callable[[Path, Episode], Path], make_episode: Callable[..., Episode], tmp_path: Path
) -> None:
    page = Page(write(tmp_path, make_episode()))
    assert "q" not in page.tags
    shown = [value for value in page.values if "q>" in value]
    assert len(shown) >= 3 and all(value.count(NAME) == value.count("q>") for value in shown)

"""A new user's way: every command of the README, in its order, at a small size; and the demo."""

from __future__ import annotations

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest

from vla.commands import cli
from vla.datasets.episodes import EpisodeStore

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
SMALL = {
    "record": ["episodes=4", "workers=1"],
    "train": [
        "plan.steps=2",
        "plan.batch_size=4",
        "plan.evaluate_every=2",
        "heldout_questions=1",
        "backbone=scratch",
        "mixture={robot: 0.5, vqa: 0.5}",
    ],
    "eval": ["seeds=1000:1002", "parallel=2", "workers=1"],
    "view": ["episodes=0:1"],
    "probe": ["n=2", "probes=[pope-sim]"],
    "deploy": ["seconds=0.5"],
}
DEMO = [
    "backbone=scratch",
    "episodes=4",
    "scenes=40",
    "evaluations=2",
    "questions=4",
    "workers=1",
    "plan.steps=2",
    "plan.batch_size=8",
    "plan.evaluate_every=2",
]


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.startswith("vla ")]


def small(arguments: list[str]) -> list[str]:
    """The command with sizes that finish in seconds, and without a screen."""
    _, name, *rest = arguments
    kept = [r for r in rest if r.split("=")[0] not in {s.split("=")[0] for s in SMALL.get(name, [])}]
    if name == "view" and "--save" not in kept:
        kept += ["--save", "outputs/shown.rrd"]
    few = [s for s in SMALL.get(name, []) if s != "backbone=scratch" or "stage=lora" not in rest]  # it adapts what is
    return [name, *kept, *few]


def test_every_command_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = commands()
    assert {arguments[1] for arguments in shown} >= {"record", "train", "eval", "view", "convert", "data"}
    for arguments in shown:
        assert cli.main(small(arguments)) == 0, (arguments, capsys.readouterr().err)
    report = json.loads(Path("outputs/eval/eval.json").read_text())
    assert [result["seed"] for result in report["results"]] == [1000, 1001, 1000, 1001]
    expert = json.loads(Path("outputs/expert/eval.json").read_text())
    assert expert["success_rate"] == 1.0
    # A saved rollout is training data.
    with EpisodeStore.open("outputs/eval/rollouts.zarr") as rollouts, EpisodeStore.open("outputs/pick.zarr") as demos:
        rollouts.embodiment.check(demos.embodiment)
        assert rollouts[0].chunks is not None and rollouts[0].chunks.shape[1:] == (6, 6)
    assert Path("outputs/rollouts.rrd").stat().st_size > 10_000


class Links(HTMLParser):
    """The addresses that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_demo_makes_everything_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", *DEMO]) == 0, capsys.readouterr().err
    out = Path("outputs/demo")
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) >= {
        "success_rate",
        "success_ci95",
        "episodes",
        "wrong_object_rate",
        "instruction_swap_success",
        "vqa_accuracy",
        "real_vqa_accuracy",
        "from_scratch",
        "minutes",
        "params",
        "device",
        "cores",
    }
    assert set(summary["minutes"]) == {"record", "train", "evaluate", "total"}
    assert summary["episodes"] == 2 and summary["from_scratch"] is True
    for name in ("demos.zarr", "scenes.zarr", "train/best", "rollouts.rrd", "training.png", "report.html"):
        assert (out / name).exists(), name
    assert list(out.glob("*.mp4"))
    links = Links()
    links.feed((out / "report.html").read_text())
    assert all(link.startswith(("data:", "#")) for link in links.found)

    # A rerun finds every phase done, and a lost one is made again.
    weights = (out / "train/best").resolve()
    before = weights.stat().st_mtime_ns
    progress = json.loads((out / "progress.json").read_text())
    progress["phases"]["evaluate"]["done"] = False
    (out / "progress.json").write_text(json.dumps(progress))
    assert cli.main(["demo", *DEMO]) == 0, capsys.readouterr().err
    assert weights.stat().st_mtime_ns == before
    assert json.loads((out / "summary.json").read_text())["success_rate"] == summary["success_rate"]

    # Other settings in the same folder are refused by name.
    assert cli.main(["demo", *DEMO, "noise=0.01"]) == 2
    assert "noise" in capsys.readouterr().err

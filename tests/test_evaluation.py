"""`vla eval` on the table, from the command line: what it writes, resumes, and refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from vla.benchmarks.rollout import untrained_policy
from vla.commands import cli
from vla.datasets.episodes import EpisodeStore
from vla.envs.make import make_env
from vla.errors import InputError
from vla.evaluation.evaluate import headline, measure, parse_seeds
from vla.evaluation.rollouts.contacts import touched
from vla.policies.hold import HoldPolicy
from vla.policies.load import weights_of_policy
from vla.training.demonstrations import Demonstrations


def run(out: Path, *options: str) -> dict[str, Any]:
    """The expert on a few seeds, in this process."""
    arguments = ["policy=expert", "seeds=0:2", "parallel=2", "workers=1", f"out={out}", *options]
    assert cli.main(["eval", *arguments]) == 0
    return dict(json.loads((out / "eval.json").read_text()))


def test_an_evaluation_writes_its_numbers_its_page_and_its_episodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "eval"
    report = run(out, "axes_report=[position]", "delay=[0,0.2]", "execution=[naive,chunked]")
    # Two seeds: named three times (no delay, and late in two ways), and once on the axis.
    assert len(report["results"]) == 8 and report["episodes"] == 2 and report["success_rate"] == 1.0
    assert [row["axis"] for row in report["by_axis"]] == ["position"]
    assert {(row["execution"], row["delay"]) for row in report["latency"]} == {
        ("naive", 0.0), ("chunked", 0.0), ("naive", 0.2), ("chunked", 0.2)
    }  # fmt: skip
    page = (out / "report.html").read_text()
    assert page.count("<video") == 3 + sum(not r["success"] for r in report["results"]) and "position" in page
    assert (out / "latency.png").stat().st_size > 1000
    assert "success 1.000 [0.342, 1.000] in 2 episodes" in capsys.readouterr().out
    # The expert's chunks have one action, which is carried out however late it comes.
    assert all(r["jerk"] > 0 for r in report["results"])
    assert all(r["seconds"] == r["length"] / 10 for r in report["results"])
    # Images that the policy did not see are repeated, and such episodes are not trained on. The expert looks always.
    with EpisodeStore.open(out / "rollouts.zarr") as store:
        assert len(store) == 8 and {record.info["frames"] for record in store.records} == {"asked"}
    with pytest.raises(InputError, match="render=all"):
        Demonstrations.open(str(out / "rollouts.zarr"))

    # More seeds are added to what is there; other settings are refused.
    lines = (out / "results.jsonl").read_text().splitlines()
    more = run(out, "seeds=0:3", "render=all")
    assert more["episodes"] == 3 and (out / "results.jsonl").read_text().splitlines()[:8] == lines
    assert len((out / "results.jsonl").read_text().splitlines()) == 9
    capsys.readouterr()
    assert run(out, "seeds=0:3", "render=all") == more
    shown = capsys.readouterr().out
    assert f"{out} has all 3 episodes already: more seeds= extend it" in shown and f"vla view {out}" in shown
    assert cli.main(["eval", "policy=expert", "n_action_steps=2", f"out={out}"]) == 2
    assert "other settings (n_action_steps)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["execution=[eager]"], "execution is a list of naive, chunked, rtc"),
        (["delay=[-1]"], "delay is a list of seconds"),
        (["delay=[soon]"], "delay is a list of seconds"),
        (["render=some"], "render is one of on_inference, all"),
        (["delay=0.2"], "delay takes a list"),
        (["delay=[inf]"], "delay is a list of seconds"),
        (["axes=light"], "axes takes a list"),
        (["questions=0"], "at least 1"),
        (["stop=0.5", "swap=true"], "stop is a rate"),
        (["axes_report=[weather]"], "unknown axis weather"),
        (["vqa=outputs/scenes.zarr"], "no VQA store at outputs/scenes.zarr"),
        (["workers=0"], "at least 1"),
        (["seeds=4:4"], "seeds must be FIRST:END"),
        (["merge=[nowhere]"], "nowhere"),
    ],
)
def test_mistakes_are_said_before_anything_is_written(
    tmp_path: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", f"out={tmp_path / 'x'}", *options]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_a_store_of_questions_must_be_there_before_the_rollouts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    untrained_policy().save_pretrained(tmp_path / "policy")
    options = [f"policy={tmp_path / 'policy'}", f"vqa={tmp_path / 'none.zarr'}", "seeds=0:1", f"out={tmp_path / 'x'}"]
    assert cli.main(["eval", *options]) == 2
    assert "no VQA store" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_weights_are_known_by_what_they_are(tmp_path: Path) -> None:
    places = {"a/best": b"one", "b": b"one", "act/checkpoints/last/pretrained_model": b"two"}
    for place, content in places.items():
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "model.safetensors").write_bytes(content)
    os.utime(tmp_path / "b/model.safetensors", (0, 0))  # a copy on another machine
    assert weights_of_policy(str(tmp_path / "a")) == weights_of_policy(str(tmp_path / "b")) is not None
    assert weights_of_policy(f"lerobot:{tmp_path / 'act'}") not in (None, weights_of_policy(str(tmp_path / "b")))
    assert weights_of_policy("expert") is None


def test_a_measured_delay_is_that_of_the_folders_that_are_merged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late = ["delay=[measured]", "execution=[chunked]"]
    for seed in range(2):
        run(tmp_path / str(seed), *late, f"seeds={seed}:{seed + 1}")
        settings = json.loads((path := tmp_path / str(seed) / "settings.json").read_text())
        told = json.loads((tmp_path / str(seed) / "results.jsonl").read_text()) | {"delay": 0.2}
        path.write_text(json.dumps(settings | {"measured": 0.2}))
        (tmp_path / str(seed) / "results.jsonl").write_text(json.dumps(told) + "\n")
    merged = f"merge=[{tmp_path / '0'},{tmp_path / '1'}]"
    assert run(tmp_path / "all", *late, merged)["measured"] == 0.2
    assert len((tmp_path / "all/results.jsonl").read_text().splitlines()) == 2  # nothing was run again
    path.write_text(json.dumps(settings | {"measured": 0.3}))
    capsys.readouterr()
    assert cli.main(["eval", "policy=expert", *late, merged, f"out={tmp_path / 'more'}"]) == 2
    assert "measured other delays (0.2, 0.3 s)" in capsys.readouterr().err and not (tmp_path / "more").exists()


def test_a_group_of_tasks_does_not_write_over_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "settings.json").write_text("{}")
    assert cli.main(["eval", "policy=hold", "task=metaworld/mt10", f"out={tmp_path}"]) == 2
    assert "holds the evaluation of one task" in capsys.readouterr().err


def test_seeds_are_a_range() -> None:
    assert parse_seeds("3:6") == range(3, 6)


def test_the_headline_tells_of_crashes_and_of_a_rate_that_was_told(tmp_path: Path) -> None:
    report: dict[str, Any] = {"success_rate": None, "crashed": 3, "stopped_after": None, "by_axis": [],
              "instruction_swap_success": None, "latency": [], "vqa": {"color": 0.5}}  # fmt: skip
    said = headline(report, tmp_path)
    assert "3 crashed, counted as neither" in said and "color 0.50" in said
    told = {"success_rate": 0.9, "success_ci95": [0.8, 0.95], "episodes": 20, "stopped_after": 20, "stop": 0.5}
    assert "differs from 0.5 after 20 episodes" in headline(report | told, tmp_path)


def test_contacts_count_but_those_with_what_is_named() -> None:
    env = make_env("pick", images=False, randomize=False)
    env.reset(seed=0)
    inner: Any = env.unwrapped
    assert touched(env) == frozenset() and measure(env, HoldPolicy(inner.embodiment)) < 1
    low = inner.scene.data.qpos[:6].copy()
    low[2] += 0.9  # the elbow bends until the hand meets the table
    for _ in range(8):
        env.step(low)
    assert "table" in touched(env)
    env.close()

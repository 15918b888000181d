"""`vla bench doctor`: what is planted and found is counted as it should be, for our checks and for those of others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recordings import HZ, arm, smooth

from vla.benchmarks import doctor
from vla.benchmarks.doctor import CLEAN, OURS, markdown
from vla.benchmarks.doctor_faults import FAULTS, HARDER, Fault
from vla.benchmarks.doctor_peers import Complaints, read_doctor, read_lint
from vla.types import Episode

EPISODES = 10
PEER = "lerobot-lint"


def episodes() -> list[Episode]:
    """Episodes before a wall of patches, over which a bar goes where the arm is."""
    body = arm(cameras=("front",))
    rng = np.random.default_rng(3)
    wall = rng.uniform(40, 220, (12, 16, 1)).repeat(8, axis=0).repeat(8, axis=1) * np.array([1, 0.8, 0.6])
    found = []
    for _ in range(EPISODES):
        steps = int(rng.integers(40, 50))
        path = smooth(rng, steps + 1, HZ)
        state = path[:-1] + rng.normal(0, 0.005, (steps, 4))
        images = np.repeat(wall[None], steps, axis=0) + rng.normal(0, 1.5, (steps, *wall.shape))
        for image, (x, y) in zip(images, state[:, :2], strict=True):
            row, column = int(40 + 20 * np.clip(y, -1, 1)), int(50 + 30 * np.clip(x, -1.5, 1.5))
            image[row : row + 12, column : column + 30] = (230, 225, 220)
        pictures = {"front": np.clip(images, 0, 255).astype(np.uint8)}
        time = np.arange(steps) / HZ
        found.append(Episode(pictures, state, path[1:], time, "wave", body, True))
    return found


def peer(tool: str, dataset: Path) -> Complaints:
    """One that complains of one episode whatever it is given."""
    return {0: {"too short"}}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[float]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "_record", lambda *_: episodes())
        patch.setattr(doctor, "exported", lambda _, folder: folder)
        patch.setattr(doctor, "complaints", peer)
        folder = tmp_path_factory.mktemp("bench")
        return {(fault, tool): v for fault, tool, v in doctor._of_task("any", EPISODES, 1, [OURS, PEER], str(folder))}


def test_every_fault_is_planted_in_its_share_and_looked_for_by_every_tool(
    found: dict[tuple[str, str], list[float]],
) -> None:
    for fault in (*FAULTS, *HARDER):
        for tool in (OURS, PEER):
            assert len(found[fault.name, tool]) == round(fault.share * EPISODES)
    assert found[CLEAN, OURS] == [0.0] * EPISODES
    for name in ("17° offset of a joint", "2 s idle", "5 % dropped frames", "one frozen camera"):
        assert found[name, OURS] == [1.0, 1.0], name


def test_what_is_said_without_the_fault_too_is_a_false_alarm_and_no_find(
    found: dict[tuple[str, str], list[float]],
) -> None:
    assert found[CLEAN, PEER] == [1.0] + [0.0] * (EPISODES - 1)
    assert not any(any(values) for (fault, tool), values in found.items() if tool == PEER and fault != CLEAN)


def test_rows_targets_and_the_table_of_the_page(found: dict[tuple[str, str], list[float]]) -> None:
    rows = [doctor._row(fault, tool, values) for (fault, tool), values in found.items()]
    targets = doctor._targets(rows, 3.0, 20)
    met = {target.name: target.met for target in targets}
    assert len(met) == len(FAULTS) + 2 and met["recall, 17° offset of a joint"]
    assert met[f"false alarms an episode, {EPISODES} clean"] and met["s for 20 episodes without images"]
    slow = doctor._targets(rows, 11.0, 20)
    assert not slow[-1].met
    lines = markdown({"rows": rows}).splitlines()
    assert lines[0] == f"| fault | `{OURS}` | `{PEER}` |"
    assert len(lines) == 2 + 1 + len(FAULTS) + len(HARDER)
    assert lines[2] == f"| {CLEAN} | 0.000 | 0.100 |"


def same(a: Episode, b: Episode) -> bool:
    arrays = [(getattr(a, name), getattr(b, name)) for name in ("state", "action", "time")]
    arrays += [(a.images[name], b.images[name]) for name in a.images]
    return all(x.shape == y.shape and (x == y).all() for x, y in arrays)


@pytest.mark.parametrize("fault", [*FAULTS, *HARDER], ids=lambda fault: fault.name)
def test_a_fault_changes_the_episode_and_not_the_one_that_it_is_made_from(fault: Fault) -> None:
    episode = episodes()[0]
    kept = replace(episode, images={"front": episode.images["front"].copy()}, action=episode.action.copy())
    planted = fault.plant(episode, np.random.default_rng(0))
    assert not same(planted, episode) and same(kept, episode)
    assert len(planted.state) == len(planted.action) == len(planted.time) == len(planted.images["front"])
    assert (np.diff(planted.time) > 0).all()


def test_reports_of_others_are_read_by_episode() -> None:
    messages = ["Episode 3: 4 of 20 frames late", "Episode 12: 1 of 9 frames late; jerk 0.5", "no calibration"]
    assert read_doctor(messages) == {
        3: {"Episode #: # of # frames late"},
        12: {"Episode #: # of # frames late", "jerk #"},
    }
    findings: list[dict[str, object]] = [
        {"episode": 2, "check": "jump", "joint": "pan"},
        {"episode": None, "check": "fps", "joint": None},
    ]
    assert read_lint({"findings": findings}) == {2: {"jump pan"}}


@pytest.mark.slow
def test_the_whole_benchmark_runs_at_a_small_size() -> None:
    table = doctor.bench_doctor(tasks=("press",), episodes=8, many=20, seed=7_000_000)
    assert {row["fault"] for row in table.rows} == {CLEAN, *(fault.name for fault in (*FAULTS, *HARDER))}
    assert len(table.targets) == len(FAULTS) + 2

"""Environments that others wrote: any of Gymnasium's by a file, and the suites that configs/env/ describes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_store
from gymnasium.utils.env_checker import check_env
from omegaconf import OmegaConf

from vla.commands import cli
from vla.commands.record import demonstrate
from vla.datasets.episodes import EpisodeStore
from vla.envs.make import make_env
from vla.envs.scripted_expert import expert_of
from vla.envs.suites.config import suites, tasks_of
from vla.envs.suites.env import SuiteEnv
from vla.errors import InputError

REACHER = """
id: Reacher-v5
robot: reacher
instruction: [touch the red ball, go to the red ball]
cameras:
  above: {lookat: [0, 0, 0], distance: 0.8, elevation: -90, height: 40, width: 48}
  side: {distance: 1.0, azimuth: 30}
state:
  shoulder [rad]: qpos[joint0]
  elbow [rad]: qpos[joint1]
  shoulder_speed [rad/s]: "[6]"
action:
  shoulder [N m]: null
  elbow [N m]: [-0.5, 0.5]
action_mode: force
control_hz: 50
max_steps: 6
success_reward: -0.1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "reacher.yaml"
    path.write_text(REACHER)
    return path


@pytest.fixture
def reacher(file: Path) -> Iterator[SuiteEnv]:
    env = make_env(str(file))
    assert isinstance(env, SuiteEnv)
    yield env
    env.close()


def play(env: Any, seed: int, steps: int = 4) -> list[Any]:
    """What an episode of the same small actions gives."""
    seen: list[Any] = list(env.reset(seed=seed))
    action = env.embodiment.hold_action(seen[0]["state"]) + 0.1
    for _ in range(steps):
        seen += env.step(action)
    return seen


def test_any_environment_of_gymnasium_is_one_of_ours(reacher: SuiteEnv) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(infinity|render mode).*")
        check_env(reacher, skip_render_check=True)
    body = reacher.embodiment
    assert (body.cameras, body.control_hz) == (("above", "side"), 50.0)
    assert (body.action_low, body.action_high) == ((-1.0, -0.5), (1.0, 0.5))
    values, info = reacher.reset(seed=3)
    assert {name: image.shape for name, image in values["images"].items()} == {
        "above": (40, 48, 3),
        "side": (96, 96, 3),
    }
    assert all(image.std() > 5 for image in values["images"].values())
    np.testing.assert_allclose(values["state"], [*reacher.data.qpos[:2], reacher.raw[6]], rtol=1e-6)
    assert values["instruction"] == info["instruction"] in reacher.config.instruction
    np.testing.assert_equal(play(reacher, 5), play(reacher, 5))
    assert len({reacher.reset(seed=seed)[0]["instruction"] for seed in range(9)}) == 2


def test_it_ends_at_success_or_after_its_steps(reacher: SuiteEnv) -> None:
    ends = set()
    for seed in range(12):
        reacher.reset(seed=seed)
        for step in range(1, 7):
            _, reward, terminated, truncated, info = reacher.step(np.zeros(2))
            assert terminated == info["success"] == (reward >= -0.1)
            assert truncated == (step == 6)
            if terminated or truncated:
                ends.add(bool(terminated))
                break
    assert ends == {True, False}


def test_to_draw_changes_nothing_in_the_physics(file: Path, reacher: SuiteEnv) -> None:
    blind = make_env(str(file), images=False, image_size=32)
    try:
        mine, theirs = play(reacher, 8), play(blind, 8)
        np.testing.assert_equal(theirs[0]["state"], mine[0]["state"])
        np.testing.assert_equal(theirs[-5]["state"], mine[-5]["state"])
        assert not any(image.any() for image in theirs[0]["images"].values())
        assert blind.unwrapped.capture()["above"].shape == (32, 32, 3)  # type: ignore[attr-defined]
    finally:
        blind.close()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("robot: reacher", "", "set robot"),
        ("robot: reacher", "robot: reacher\ncolour: red", "colour"),
        ("control_hz: 50", "control_hz: fast", "fast"),
        ("success_reward: -0.1", "", "set either success"),
        ("Reacher-v5", "Reachers-v5", "Reachers"),
        ("Reacher-v5", "no_such_module:Reacher-v5", "no_such_module"),
        ("  elbow [N m]: [-0.5, 0.5]\n", "", "config has 1 actions"),
        ("[-0.5, 0.5]", "[-0.5]", r"limits of elbow \[N m\]"),
        ("qpos[joint0]", "joint0", "neither"),
        ("qpos[joint0]", "angles[0]", "no 'angles'"),
        ("success_reward: -0.1", "success: done", "no 'done'"),
        ("lookat: [0, 0, 0]", "camera: nowhere", "no camera 'nowhere'"),
        ("id: Reacher-v5", "id: [Reacher-v5", "not YAML"),
        ("robot: reacher", "robot: reacher\ntasks: [one]", "names with values"),
    ],
)
def test_a_mistake_in_a_file_is_named(file: Path, before: str, after: str, message: str) -> None:
    assert before in REACHER
    file.write_text(REACHER.replace(before, after))
    with pytest.raises(InputError, match=message):
        env = make_env(str(file))
        try:
            play(env, 0)
        finally:
            env.close()


def test_a_name_that_is_nothing_and_what_a_suite_lacks(file: Path, reacher: SuiteEnv) -> None:
    for name, message in (
        ("nowhere/open", "unknown task"),
        ("../fetch", "unknown task"),
        ("fetch/open", "it has: reach, push, pick-place"),
        ("fetch", "several tasks"),
        (str(file.with_name("none.yaml")), "no file"),
        (f"{file}/one", "without a name"),
    ):
        with pytest.raises(InputError, match=message):
            make_env(name)
    with pytest.raises(InputError, match="axes"):
        make_env(str(file), axes=("light",))
    with pytest.raises(InputError, match="one instruction per scene"):
        reacher.reset(seed=0, options={"swap": True})
    with pytest.raises(InputError, match="no scripted expert"):
        expert_of(reacher)


def test_a_group_is_evaluated_task_by_task(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(f"{REACHER}groups: {{both: [near, far]}}\ntasks:\n  near: {{success_reward: -9}}\n  far: {{}}\n")
    assert tasks_of(f"{file}/both") == tasks_of(str(file)) == (f"{file}/near", f"{file}/far")
    say = ["eval", "policy=hold", "seeds=0:2", f"task={file}/both", f"out={tmp_path}/out", "parallel=1"]
    assert cli.main([*say, "swap=true"]) == 2
    assert "swap=false" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert cli.main(say) == 0
    report = json.loads((tmp_path / "out" / "eval.json").read_text())
    near, far = report["by_task"].values()
    assert (near["success_rate"], near["episodes"], report["episodes"]) == (1.0, 2, 4)
    assert report["success_rate"] == (1 + far["success_rate"]) / 2
    # Torques are named nowhere in the state: to hold still is to apply none.
    with EpisodeStore.open(str(tmp_path / "out" / "far" / "rollouts.zarr")) as store:
        assert not store[0].action.any()


@pytest.mark.parametrize(
    ("name", "package"),
    [
        *((task, "gymnasium_robotics") for task in tasks_of("fetch")),
        *((task, "gym_aloha") for task in tasks_of("aloha")),
        ("metaworld/push-v3", "metaworld"),
        pytest.param("libero/goal-0", "libero", marks=pytest.mark.filterwarnings("ignore")),  # it has many
    ],
)
def test_a_suite_runs_and_a_seed_is_its_scene(name: str, package: str) -> None:
    pytest.importorskip(package)
    env = make_env(name, image_size=64)
    try:
        first = play(env, 1)
        other = play(env, 2)
        np.testing.assert_equal(play(env, 1), first)
        assert env.observation_space.contains(first[0])
        assert all(image.std() > 5 for image in first[0]["images"].values())
        assert any((first[0]["images"][c] != other[0]["images"][c]).any() for c in first[0]["images"])
        assert first[1]["instruction"].islower() and not first[1]["success"]
    finally:
        env.close()


def test_metaworld_is_complete() -> None:
    env_dict = pytest.importorskip("metaworld.env_dict")
    names = {n.partition("/")[2] for n in tasks_of("metaworld/mt50")}
    assert names == set(env_dict.MT50_V3)
    assert {n.partition("/")[2] for n in tasks_of("metaworld/mt10")} == set(env_dict.MT10_V3)
    assert {"aloha", "fetch", "libero", "metaworld"} == set(suites())


@pytest.mark.slow  # a training and its rollouts
def test_from_the_demonstrations_of_metaworlds_expert_to_a_policy(tmp_path: Path) -> None:
    pytest.importorskip("metaworld")
    shipped = OmegaConf.load(Path(__file__).parents[1] / "configs" / "env" / "metaworld.yaml")
    file = tmp_path / "short.yaml"
    OmegaConf.save(OmegaConf.merge(shipped, {"max_steps": 60}), file)
    task = f"{file}/reach-v3"
    env = make_env(task)
    try:
        episodes = [demonstrate(env, task, seed, noise=0.05) for seed in range(3)]
    finally:
        env.close()
    assert all(episode.success for episode in episodes)
    write_store(tmp_path / "demos.zarr", episodes)
    small = ["plan.steps=2", "plan.batch_size=2", "plan.evaluate_every=2", "mixture.vqa=0", "backbone=scratch"]
    assert cli.main(["train", f"data={tmp_path}/demos.zarr", f"out={tmp_path}/train", *small]) == 0
    say = ["eval", f"task={task}", "seeds=9:10", "parallel=1"]
    assert cli.main([*say, f"policy={tmp_path}/train", f"out={tmp_path}/policy"]) == 0
    assert cli.main([*say, "policy=expert", f"out={tmp_path}/expert"]) == 0
    reports = [json.loads((tmp_path / name / "eval.json").read_text()) for name in ("policy", "expert")]
    assert [report["crashed"] for report in reports] == [0, 0]
    assert reports[1]["success_rate"] == 1.0

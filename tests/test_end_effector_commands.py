"""A checkpoint that outputs tool poses, through `vla eval`, `vla deploy` and `vla serve`; the benchmark of replays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ee_stores import moving, so101_body, store_of
from serving import served

from vla.benchmarks.end_effector import bench_end_effector
from vla.commands import cli
from vla.commands.deploy import _load
from vla.control.adapt import load_for_robots
from vla.datasets.episodes import EpisodeStore
from vla.datasets.tools.derive import derive
from vla.embodiment import Embodiment
from vla.envs.make import make_env
from vla.errors import InputError
from vla.models.action_targets import ActionTargets
from vla.models.normalization import Normalizer
from vla.models.processor import Processor
from vla.models.robot_spec import RobotSpec
from vla.models.vla import VLA
from vla.policies.replay import ReplayPolicy
from vla.policies.vla import VlaPolicy
from vla.types import RTCPrefix


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., VLA]) -> Path:
    """Of random weights, that says poses close to where the tool is."""
    folder = tmp_path_factory.mktemp("ee")
    derive(
        store_of(folder / "joints.zarr", moving(0)),
        out=str(folder / "ee.zarr"),
        actions="ee",
        model="so101",
        tool="gripperframe",
    )
    with EpisodeStore.open(folder / "ee.zarr") as store:
        body = store.embodiment
    relative = (True,) * len(body.action)
    width = ActionTargets(body, relative).action_dim
    spec = RobotSpec(
        embodiment=body,
        horizon=4,
        state=Normalizer((-2.0,) * len(body.state), (2.0,) * len(body.state)),
        action=Normalizer((-0.02,) * width, (0.02,) * width),
        statistics_hash="none",
        relative=relative,
    )
    plain = make_model(robot=False)
    old = plain.processor
    processor = Processor(old.tokenizer, old.image_size, old.tokens_per_image, (spec,))
    VLA(plain.backbone, processor).eval().save_pretrained(folder / "policy")
    return folder / "policy"


def test_eval_runs_it_on_joints(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", f"policy={checkpoint}", "seeds=3:5", f"out={tmp_path / 'out'}", "workers=1", "task=press"]
    assert cli.main(command) == 0, capsys.readouterr()
    line = "the policy outputs poses (gripperframe: tool_x [m], "
    assert line in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert report["crashed"] == 0 and report["episodes"] == 2
    with EpisodeStore.open(tmp_path / "out" / "rollouts.zarr") as store:
        assert store.embodiment.action[0] == "shoulder_pan [rad]"
        assert np.abs(np.diff(store[0].action, axis=0)).max() > 1e-4


def test_deploy_makes_it_one_of_joints(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = _load(str(checkpoint), so101_body(), {}, (2.0,) * 6, {}, "rtc")
    assert policy.embodiment == so101_body() and "the policy outputs poses" in capsys.readouterr().out


@pytest.mark.slow
def test_deploy_runs_it_on_joints(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["deploy", f"policy={checkpoint}", "seconds=1", f"out={tmp_path / 'out'}"]
    assert cli.main(command) == 0, capfd.readouterr()
    told = json.loads((tmp_path / "out" / "deploy.json").read_text())
    assert told["reason"] == "done" and told["chunks"] > 0 and told["invalid"] == 0
    assert "the policy outputs poses" in capfd.readouterr().out


def test_a_served_one_runs_on_joints_too(checkpoint: Path) -> None:
    env = make_env("press")
    with served(VlaPolicy.load(checkpoint)) as url:
        policy = load_for_robots(url, {})(env)
        body: Embodiment = env.unwrapped.embodiment  # type: ignore[attr-defined]
        assert policy.embodiment == body
        policy.policy.close()  # type: ignore[attr-defined]
    env.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["task=press", "kinematics.model=nowhere.urdf"], "no such file"),
        (["task=press", "kinematics.model=so101", "kinematics.tool=tip"], "gripperframe"),
        (["task=press", "kinematics.joints={shoulder_pan: 'gripper [rad]'}"], "shoulder_lift"),
        (["task=bimanual-lift"], "so101_pair"),
    ],
)
def test_mistakes_are_named_before_anything_moves(
    checkpoint: Path, tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", f"policy={checkpoint}", "seeds=3:5", f"out={tmp_path / 'out'}", "workers=1", *options]
    assert cli.main(command) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_options_that_nothing_uses_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "policy=hold", "seeds=3:5", f"out={tmp_path / 'out'}", "kinematics.model=so101"]
    assert cli.main(command) == 2
    assert "kinematics.model: the policy outputs this robot's actions already" in capsys.readouterr().err


def test_replaying_poses_does_as_well_as_replaying_joints() -> None:
    table = bench_end_effector(("pick",), 3)
    rows = {row["actions"]: row for row in table.rows if row["what"] == "replay of pick"}
    assert rows["joints"]["success"] == rows["ee"]["success"] == 1.0 and rows["ee"]["difference"] == 0.0
    assert all(target.met for target in table.targets)
    unlimited = [row["max speed / limit"] for row in table.rows if row["actions"] == "ee, no limit"]
    assert min(unlimited) > 1  # the paths ask for more than the joints may do


def test_an_episode_is_replayed_by_its_seed(tmp_path: Path) -> None:
    path = store_of(tmp_path / "a.zarr", moving(3, steps=5), moving(4, steps=9))
    env = make_env("pick", images=False)
    with EpisodeStore.open(path) as store:
        policy = ReplayPolicy(env, store, horizon=4)
        values, _ = env.reset(seed=4)
        policy.reset()
        from vla.envs.so101 import to_observation

        chunk = policy.predict(to_observation(values, 0.7), prefix=RTCPrefix(np.ones((1, 6))))
        expected = store[1].action
        np.testing.assert_array_equal(chunk.actions[1:], expected[[8, 8, 8]])
        np.testing.assert_array_equal(chunk.actions[0], np.ones(6))
        env.reset(seed=5)
        with pytest.raises(InputError, match="no episode of the seed 5"):
            policy.reset()
    env.close()

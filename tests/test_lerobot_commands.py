"""A released policy that was trained and exported by our commands, in LeRobot's commands and its own policy class."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_store
from lerobot_plugin import command
from lerobot_policies import noise, reference

import vla
from vla.commands.cli import main
from vla.envs.make import make_env
from vla.types import Episode, Observation

KINDS = ("pi05", "smolvla")
Make = Callable[..., Episode]


def exported(kind: str, episodes: list[Episode], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The run of a tiny policy that was trained for two steps, and its export.

    The policy is as if LeRobot had trained it on a GPU, from a vision-language model of the hub, with an empty camera.
    """
    base = reference(kind, folder / "base", monkeypatch, empty_cameras=1).folder
    other = {"device": "cuda"} | ({"load_vlm_weights": True} if kind == "smolvla" else {})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | other))
    steps = (base / "policy_preprocessor.json").read_text()
    (base / "policy_preprocessor.json").write_text(steps.replace('"device": "cpu"', '"device": "cuda"'))
    write_store(folder / "data.zarr", episodes)
    plan = ["plan.steps=2", "plan.batch_size=2", "plan.precision=fp32", "heldout_questions=0", "mixture.vqa=0"]
    data = [f"backbone={base}", f"data={folder / 'data.zarr'}", f"out={folder / 'run'}"]
    assert main(["train", *data, *plan]) == 0
    assert main(["export-lerobot", f"policy={folder / 'run'}", f"out={folder / 'out'}"]) == 0
    assert json.loads((folder / "out/config.json").read_text())["type"] == kind
    return folder / "run", folder / "out"


def so101_episode(make_episode: Make, seed: int) -> Episode:
    """A random one of the simulated SO-101."""
    rng, env = np.random.default_rng(seed), make_env("pick")
    body = env.unwrapped.embodiment  # type: ignore[attr-defined]
    env.close()
    joints = rng.uniform(body.action_low, body.action_high, (14, 6))
    images = {name: rng.integers(0, 256, (14, 96, 96, 3), np.uint8) for name in body.cameras}
    return make_episode(
        seed, steps=14, embodiment=body, images=images, state=joints, action=joints[::-1], time=np.arange(14) / 10.0
    )


def first_action(out: Path, env: Any, seed: int) -> np.ndarray[Any, Any]:
    """The first action that lerobot-eval sends, computed by the functions that it calls."""
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.envs.factory import make_env as make_theirs
    from lerobot.envs.utils import preprocess_observation
    from lerobot.policies.factory import make_policy, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(out)
    config.pretrained_path = out  # type: ignore[assignment]
    config.device = "cpu"
    policy: Any = make_policy(config, env_cfg=env).eval()
    assert type(policy).__module__.startswith("lerobot.policies.")
    policy.model.sample_noise = lambda shape, device: noise()[None]
    overrides = {"device_processor": {"device": "cpu"}, "rename_observations_processor": {"rename_map": {}}}
    before, after = make_pre_post_processors(config, str(out), preprocessor_overrides=overrides)
    scenes = make_theirs(env)["vla"][0]
    seen = preprocess_observation(scenes.reset(seed=[seed])[0])
    seen["task"] = list(scenes.call("task_description"))
    scenes.close()
    with torch.inference_mode():
        return np.asarray(after(policy.select_action(before(seen)))[0].double())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_lerobot_eval_runs_what_is_exported(
    kind: str,
    plugin: ModuleType,
    lerobot_site: Path,
    tmp_path: Path,
    make_episode: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, out = exported(kind, [so101_episode(make_episode, seed) for seed in range(3)], tmp_path, monkeypatch)
    from lerobot.envs.configs import EnvConfig

    env = make_env("pick", randomize=False, phrasing="heldout")
    values, info = env.reset(seed=4)
    ours = vla.load_policy(run, env)
    chunk = ours.predict({**values, "instruction": info["instruction"]})
    env.close()
    assert chunk is not None
    theirs = first_action(out, EnvConfig.get_choice_class("vla")(task="pick", randomize=False), 4)
    # LeRobot's class does not limit actions.
    limited = ours.embodiment.clip(theirs)
    assert np.sum(limited == theirs) > 2
    np.testing.assert_allclose(chunk.actions[0], limited, atol=1e-4)
    monkeypatch.undo()
    command(
        lerobot_site,
        "lerobot-eval",
        f"--policy.path={out}",
        "--env.type=vla",
        "--eval.n_episodes=2",
        "--eval.batch_size=2",
        "--eval.use_async_envs=false",
        f"--output_dir={tmp_path / 'results'}",
        before=f"import lerobot_policies; lerobot_policies.tiny({kind!r})",
    )
    results = json.loads((tmp_path / "results/eval_info.json").read_text())["overall"]
    assert results["n_episodes"] == 2
    assert 0 <= results["pc_success"] <= 100


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_lerobot_rollout_drives_a_robot_with_what_is_exported(
    kind: str, lerobot_site: Path, tmp_path: Path, make_episode: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = exported(kind, [make_episode(seed, steps=14) for seed in range(3)], tmp_path, monkeypatch)
    images = {name: np.full((8, 10, 3), 7, np.uint8) for name in ("front", "wrist")}
    state = np.array([0.1, -0.2], np.float32).astype(np.float64)
    ours = vla.load_policy(run)
    chunk = ours.predict(Observation(images, state, "lift the ring", 0.0))
    assert chunk is not None
    monkeypatch.undo()
    command(
        lerobot_site,
        "lerobot-rollout",
        f"--policy.path={out}",
        "--robot.type=toy",
        f"--robot.log={tmp_path / 'sent.json'}",
        "--task=lift the ring",
        "--fps=10",
        "--duration=2",
        "--return_to_initial_position=false",
        "--play_sounds=false",
        before=f"import lerobot_policies; lerobot_policies.tiny({kind!r})",
    )
    sent = json.loads((tmp_path / "sent.json").read_text())
    assert list(sent[0]) == ["lift.pos", "turn.pos", "grip.pos"]
    actions = np.array([list(action.values()) for action in sent[: len(chunk.actions)]])
    np.testing.assert_allclose(ours.embodiment.clip(actions), chunk.actions[: len(actions)], atol=1e-4)

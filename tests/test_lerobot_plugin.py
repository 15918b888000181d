"""Our checkpoints in LeRobot: its own commands load them through the plug-in, and see the same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from lerobot_plugin import command
from so101_checkpoints import so101_model

from vla.envs.make import make_env
from vla.errors import InputError
from vla.models.hub import LEROBOT_FILES
from vla.models.vla import VLA
from vla.policies.vla import VlaPolicy
from vla.types import Observation


@pytest.mark.slow  # LeRobot's command needs ten seconds and more to start
def test_lerobot_eval_rolls_a_checkpoint_out(
    lerobot_site: Path, tmp_path: Path, make_model: Callable[..., VLA]
) -> None:
    so101_model(make_model(robot=False)).save_pretrained(tmp_path / "policy")
    command(
        lerobot_site,
        "lerobot-eval",
        f"--policy.path={tmp_path / 'policy'}",
        "--env.type=vla",
        "--eval.n_episodes=2",
        "--eval.batch_size=2",
        "--eval.use_async_envs=false",
        f"--output_dir={tmp_path / 'out'}",
    )
    results = json.loads((tmp_path / "out" / "eval_info.json").read_text())
    assert results["overall"]["n_episodes"] == 2


def test_the_environment_is_ours_under_lerobots_names(plugin: ModuleType) -> None:
    """The same seed is the same scene and instruction, as LeRobot hands it to a policy."""
    from lerobot.envs.configs import EnvConfig
    from lerobot.envs.factory import make_env as make_theirs
    from lerobot.envs.utils import preprocess_observation

    from lerobot_policy_vla.batches import as_bytes

    config = EnvConfig.get_choice_class("vla")(task="place", randomize=False)
    theirs, ours = make_theirs(config)["vla"][0], make_env("place", randomize=False, phrasing="heldout")
    values, told = ours.reset(seed=4)
    seen = preprocess_observation(theirs.reset(seed=[4])[0])
    assert seen.keys() == {"observation.state", "observation.images.front", "observation.images.wrist"}
    assert list(theirs.call("task_description")) == [told["instruction"]]
    np.testing.assert_allclose(seen["observation.state"][0], values["state"], atol=1e-6)
    np.testing.assert_array_equal(as_bytes(seen["observation.images.wrist"])[0], values["images"]["wrist"])
    assert theirs.call("_max_episode_steps") == (150,)
    theirs.close()
    ours.close()


def test_lerobot_rollout_drives_a_robot(lerobot_site: Path, tmp_path: Path, make_model: Callable[..., VLA]) -> None:
    model = make_model()
    model.save_pretrained(tmp_path / "policy")
    command(
        lerobot_site,
        "lerobot-rollout",
        f"--policy.path={tmp_path / 'policy'}",
        "--robot.type=toy",
        f"--robot.log={tmp_path / 'sent.json'}",
        "--task=lift the ring",
        "--fps=10",
        "--duration=1",
        "--return_to_initial_position=false",
        "--play_sounds=false",
    )
    sent = json.loads((tmp_path / "sent.json").read_text())
    images = {name: np.full((8, 10, 3), 7, np.uint8) for name in ("front", "wrist")}
    state = np.array([0.1, -0.2], np.float32).astype(np.float64)
    chunk = VlaPolicy(model).predict(Observation(images, state, "lift the ring", 0.0))
    assert chunk is not None
    np.testing.assert_allclose(list(sent[0].values()), chunk.actions[0], atol=1e-5)
    assert list(sent[0]) == ["lift.pos", "turn.pos", "grip.pos"]


def observation(seed: int) -> Observation:
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (8, 10, 3), np.uint8) for name in ("front", "wrist")}
    return Observation(images, rng.normal(size=2).astype(np.float32).astype(np.float64), "lift the ring", 0.0)


def batch_of(*observations: Observation) -> dict[str, object]:
    """As LeRobot hands observations to a policy."""
    images = {
        f"observation.images.{camera}": torch.stack(
            [torch.from_numpy(o.images[camera]).permute(2, 0, 1).float() / 255 for o in observations]
        )
        for camera in ("front", "wrist")
    }
    state = torch.from_numpy(np.stack([o.state for o in observations])).float()
    return {"observation.state": state, "task": [o.instruction for o in observations], **images}


def test_the_policy_sees_the_numbers_that_ours_sees(plugin: ModuleType, make_model: Callable[..., VLA]) -> None:
    from lerobot_policy_vla import VlaConfig

    model = make_model()
    config = VlaConfig(n_action_steps=2)
    policy = plugin.VlaPolicy(config, model=model)
    observations = [observation(0), observation(1)]
    expected = [chunk.actions for chunk in VlaPolicy(model).predict_batch(observations) if chunk is not None]
    batch = batch_of(*observations)
    torch.testing.assert_close(policy.predict_action_chunk(batch).double().numpy(), np.stack(expected))
    assert {name: tuple(f.shape) for name, f in config.input_features.items()} == {
        "observation.state": (2,),
        "observation.images.front": (3, 32, 32),
        "observation.images.wrist": (3, 32, 32),
    }
    steps = [policy.select_action(batch).double().numpy() for _ in range(3)]
    torch.testing.assert_close(np.stack(steps), np.stack(expected, 1)[[0, 1, 0]])


def test_past_frames_are_those_of_each_robots_last_steps(
    plugin: ModuleType, make_model: Callable[..., VLA], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lerobot_policy_vla import VlaConfig

    model = make_model()
    assert model.processor.head is not None
    robot = replace(model.processor.robot(), history=(3, 1))
    model.processor = model.processor.with_robots([robot], model.processor.head.settings, "numbers")
    policy, requested = plugin.VlaPolicy(VlaConfig(n_action_steps=2), model=model), []
    predict = VlaPolicy.predict_batch
    monkeypatch.setattr(
        VlaPolicy, "predict_batch", lambda self, seen, **more: requested.append(seen) or predict(self, seen, **more)
    )
    steps = [[observation(2 * t), observation(2 * t + 1)] for t in range(5)]
    for _ in range(2):
        for rows in steps:
            policy.select_action(batch_of(*rows))
        policy.reset()
    for seen, t in zip(requested, (0, 2, 4) * 2, strict=True):
        for i, one in enumerate(seen):
            assert [bool(images) for images in one.past] == [t >= 3, t >= 1]
            for images, back in zip(one.past, (3, 1), strict=True):
                for camera, image in images.items():
                    np.testing.assert_array_equal(image, steps[t - back][i].images[camera])
    with pytest.raises(InputError, match="select_action at every step"):
        policy.predict_action_chunk(batch_of(*steps[0]))


def test_images_of_a_backbone_need_not_be_square(plugin: ModuleType, make_model: Callable[..., VLA]) -> None:
    from lerobot_policy_vla import VlaConfig

    model, config = make_model(), VlaConfig()
    model.processor.image_size = (24, 32)
    plugin.VlaPolicy(config, model=model)
    assert tuple(config.input_features["observation.images.front"].shape) == (3, 24, 32)


def test_what_does_not_decode_holds_the_robot(
    plugin: ModuleType, make_model: Callable[..., VLA], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lerobot_policy_vla import VlaConfig

    model = so101_model(make_model(robot=False))
    policy = plugin.VlaPolicy(VlaConfig(), model=model)
    state = torch.full((1, 6), 0.3)
    images = {f"observation.images.{camera}": torch.zeros(1, 3, 9, 9) for camera in ("front", "wrist")}
    batch = {"observation.state": state, "task": "pick it up", **images}
    said = [None]
    monkeypatch.setattr(model, "generate_actions", lambda *_, **__: (said, np.zeros((1, 0, 2))))
    torch.testing.assert_close(policy.predict_action_chunk(batch), state[:, None].expand(1, 4, 6))
    said[0] = np.full((4, 6), 0.5)  # type: ignore[call-overload]
    commanded = policy.select_action(batch)
    said[0] = None
    policy._queue.clear()
    torch.testing.assert_close(policy.select_action({**batch, "observation.state": state + 1}), commanded)
    policy.reset()
    torch.testing.assert_close(policy.select_action(batch), state)


def test_mistakes_are_named(plugin: ModuleType, make_model: Callable[..., VLA]) -> None:
    from lerobot_policy_vla import VlaConfig

    model = make_model()
    with pytest.raises(InputError, match="without a dataset: set --policy.path"):
        plugin.VlaPolicy(VlaConfig())
    with pytest.raises(InputError, match="drives toy, not so101"):
        plugin.VlaPolicy(VlaConfig(robot="so101"), model=model)
    policy = plugin.VlaPolicy(VlaConfig(), model=model)
    batch = batch_of(observation(0))
    with pytest.raises(InputError, match="observation.images.wrist is missing.*--rename_map"):
        policy.select_action({k: v for k, v in batch.items() if "wrist" not in k})
    with pytest.raises(InputError, match="radians.*so101_follower uses other units"):
        policy.select_action({**batch, "robot_type": "so101_follower"})
    with pytest.raises(InputError, match="no chunks of actions"):
        policy.forward(batch)
    with pytest.raises(InputError, match="vla train lora="):
        policy.wrap_with_peft(peft_cli_overrides={"r": 4})
    with pytest.raises(InputError, match="choose dataset, degrees, percent"):
        VlaConfig(units="radians")


def test_a_checkpoint_saved_by_lerobot_is_one_of_ours(
    plugin: ModuleType, make_model: Callable[..., VLA], tmp_path: Path
) -> None:
    """The processors that are written down are those that the plug-in makes."""
    from lerobot_policy_vla import VlaConfig
    from lerobot_policy_vla.processor_vla import make_vla_pre_post_processors

    model = make_model()
    config = VlaConfig()
    plugin.VlaPolicy(config, model=model).save_pretrained(tmp_path / "policy")
    again = VLA.from_pretrained(tmp_path / "policy")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    for pipeline in make_vla_pre_post_processors(config):
        pipeline.save_pretrained(tmp_path / "lerobot")
    for name, values in LEROBOT_FILES.items():
        assert json.loads((tmp_path / "lerobot" / name).read_text()) == values

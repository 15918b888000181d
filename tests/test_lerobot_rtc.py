"""Real-time chunking in LeRobot: `lerobot-rollout --inference.type=rtc` with our policies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from threading import Event
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lerobot_plugin import command

from vla.errors import InputError
from vla.models.vla import VLA
from vla.policies.vla import VlaPolicy
from vla.types import Observation, RTCPrefix

STATE = np.array([0.1, -0.2])
IMAGES = {name: np.full((8, 10, 3), 7, np.uint8) for name in ("front", "wrist")}
OBSERVATION = Observation(IMAGES, STATE.astype(np.float32).astype(np.float64), "lift the ring", 0.0)
FEATURES = {
    "observation.state": {"dtype": "float32", "shape": (2,), "names": ["lift.pos", "turn.pos"]},
    **{f"observation.images.{c}": {"dtype": "image", "shape": (8, 10, 3), "names": None} for c in IMAGES},
}


def batch() -> dict[str, Any]:
    images = {f"observation.images.{c}": torch.full((1, 3, 8, 10), 7 / 255) for c in IMAGES}
    return {"observation.state": torch.from_numpy(STATE).float()[None], "task": ["lift the ring"], **images}


def policy_of(plugin: ModuleType, model: VLA, **settings: Any) -> Any:
    from lerobot.policies.rtc.configuration_rtc import RTCConfig

    from lerobot_policy_vla import VlaConfig

    policy = plugin.VlaPolicy(VlaConfig(device="cpu"), model=model).eval()
    policy.config.rtc_config = RTCConfig(**settings)
    return policy


@pytest.mark.parametrize("head", ["parallel", "bins", "l1", "flow"])
@pytest.mark.parametrize("delay", [0, 1, 3, 9])
def test_a_chunk_continues_the_previous_one_as_with_our_prefix(
    plugin: ModuleType, make_model: Callable[..., VLA], head: str, delay: int
) -> None:
    """The actions that will have been executed are committed; a flow is guided towards the others."""
    model = make_model(head=head)
    policy = policy_of(plugin, model)
    first = policy.predict_action_chunk(batch())[0]
    leftover = first[1:].clone()
    chunk = policy.predict_action_chunk(batch(), inference_delay=delay, prev_chunk_left_over=leftover)
    count, rest = min(delay, 3), None
    known = leftover.double().numpy()
    if head == "flow" and count < 3:
        rest = known[count:]
    ours = VlaPolicy(model).predict(
        OBSERVATION, prefix=RTCPrefix(known[:count], rest) if count or rest is not None else None
    )
    assert ours is not None
    torch.testing.assert_close(chunk[0].double().numpy(), ours.actions, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(chunk[0, :count], leftover[:count])


def test_settings_of_lerobot(plugin: ModuleType, make_model: Callable[..., VLA]) -> None:
    from lerobot.configs import RTCAttentionSchedule

    model = make_model(head="flow")
    policy = policy_of(plugin, model)
    alone = policy.predict_action_chunk(batch())
    leftover = alone[0, 1:] + 0.1
    guided = policy.predict_action_chunk(batch(), inference_delay=0, prev_chunk_left_over=leftover)
    assert not torch.equal(guided, alone)
    short = policy.predict_action_chunk(batch(), inference_delay=0, prev_chunk_left_over=leftover, execution_horizon=1)
    assert not torch.equal(guided, short)
    for settings in ({"enabled": False}, {"prefix_attention_schedule": RTCAttentionSchedule.ZEROS}):
        unguided = policy_of(plugin, model, **settings)
        torch.testing.assert_close(
            unguided.predict_action_chunk(batch(), inference_delay=0, prev_chunk_left_over=leftover), alone
        )


def test_lerobots_padding_is_not_a_command(plugin: ModuleType) -> None:
    """Zeros after the end of the last chunk are padding; zeros inside it are actions."""
    from lerobot_policy_vla.rtc import known_steps, rtc_prefix

    chunk = torch.tensor([[[1.0, 2.0], [0.0, 0.0], [3.0, 4.0], [0.0, 0.0]]])
    padded = torch.cat([chunk[:, 2:], torch.zeros(1, 3, 2)], 1)
    assert known_steps(chunk, padded.double()) == 2
    assert known_steps(chunk, chunk.double()) == 4
    assert known_steps(chunk, chunk[:, :2].double()) == 2  # cut by LeRobot's execution horizon
    assert known_steps(None, padded.double()) == 1
    assert known_steps(chunk, torch.zeros(1, 3, 2).double()) <= 1
    assert rtc_prefix(chunk, torch.zeros(3, 2), 0, 4, guides=False) is None
    assert rtc_prefix(chunk, None, 2, 4, guides=True) is None
    prefix = rtc_prefix(chunk, padded[0], 5, 4, guides=True)
    assert prefix is not None and prefix.leftover is None
    np.testing.assert_array_equal(prefix.committed, chunk[:, 2:].numpy())


def test_without_a_valid_chunk_the_committed_actions_are_followed_by_the_last(
    plugin: ModuleType, make_model: Callable[..., VLA], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    policy = policy_of(plugin, model)
    first = policy.predict_action_chunk(batch())[0]
    monkeypatch.setattr(model, "generate_actions", lambda *_, **__: ([None], np.zeros((1, 0, 2))))
    held = policy.predict_action_chunk(batch(), inference_delay=2, prev_chunk_left_over=first[1:])[0]
    torch.testing.assert_close(held, torch.stack([first[1], first[2], first[2], first[2]]))


def test_past_frames_exclude_it(plugin: ModuleType, make_model: Callable[..., VLA]) -> None:
    from dataclasses import replace

    model = make_model()
    assert policy_of(plugin, model).supports_rtc()
    assert model.processor.head is not None
    robot = replace(model.processor.robot(), history=(1,))
    model.processor = model.processor.with_robots([robot], model.processor.head.settings, "numbers")
    policy = policy_of(plugin, model)
    assert not policy.supports_rtc()
    with pytest.raises(InputError, match="select_action"):
        policy.predict_action_chunk(batch(), inference_delay=0, prev_chunk_left_over=None)


def test_lerobots_engine_drives_it(plugin: ModuleType, make_model: Callable[..., VLA]) -> None:
    """Every chunk that its thread asks for is the one of our policy for the same prefix, and no zero is committed."""
    from lerobot.policies.rtc.configuration_rtc import RTCConfig
    from lerobot.rollout.inference.rtc import RTCInferenceEngine, supports_rtc_inference

    from lerobot_policy_vla.processor_vla import make_vla_pre_post_processors

    model, requests, enough = make_model(head="flow"), [], Event()
    policy = policy_of(plugin, model, execution_horizon=3)
    predict = policy.predict_action_chunk

    def record(observations: dict[str, Any], **arguments: Any) -> torch.Tensor:
        chunk = predict(observations, **arguments)
        requests.append((arguments, chunk[0].double().numpy()))
        if len(requests) == 4:
            enough.set()
        return chunk

    assert supports_rtc_inference(policy)
    policy.predict_action_chunk = record
    before, after = make_vla_pre_post_processors(policy.config)
    engine = RTCInferenceEngine(
        policy,
        before,
        after,
        SimpleNamespace(robot_type="toy", action_features={}),
        RTCConfig(execution_horizon=3),
        FEATURES,
        "lift the ring",
        1.0,  # so that a chunk is late by one step, whatever the machine
        "cpu",
        rtc_queue_threshold=3,
    )
    observation = {"lift.pos": 0.1, "turn.pos": -0.2, **IMAGES}
    engine.start()
    engine.notify_observation(observation)
    engine.resume()
    assert enough.wait(60)
    engine.stop()
    assert not engine.failed
    previous: np.ndarray | None = None
    for arguments, chunk in requests[:4]:
        leftover = arguments["prev_chunk_left_over"]
        if previous is None:
            assert leftover is None
        else:
            assert arguments["inference_delay"] == 1
            known = previous[1:]  # the chunk was late by one step
            np.testing.assert_array_equal(leftover.double().numpy(), known)
            ours = VlaPolicy(model).predict(OBSERVATION, prefix=RTCPrefix(known[:1], known[1:]))
            assert ours is not None
            np.testing.assert_allclose(chunk, ours.actions, rtol=1e-5, atol=1e-6)
        previous = chunk


@pytest.mark.slow  # LeRobot's command needs ten seconds and more to start
def test_lerobot_rollout_drives_a_robot(lerobot_site: Path, tmp_path: Path, make_model: Callable[..., VLA]) -> None:
    make_model(head="flow").save_pretrained(tmp_path / "policy")
    command(
        lerobot_site,
        "lerobot-rollout",
        f"--policy.path={tmp_path / 'policy'}",
        "--inference.type=rtc",
        "--inference.rtc.execution_horizon=3",
        "--inference.queue_threshold=3",
        "--robot.type=toy",
        f"--robot.log={tmp_path / 'sent.json'}",
        "--task=lift the ring",
        "--fps=10",
        "--duration=3",
        "--return_to_initial_position=false",
        "--play_sounds=false",
    )
    sent = np.array([list(action.values()) for action in json.loads((tmp_path / "sent.json").read_text())])
    assert len(sent) > 5 and np.isfinite(sent).all() and (np.abs(sent).sum(1) > 0).all()

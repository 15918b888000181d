"""A policy takes further robots, points and horizons, and acts as before where nothing of its robot has changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_heads import HEADS, options

from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.models.action_heads.fast import from_json
from vla.models.action_heads.flow import FlowMatchingHead
from vla.models.action_heads.flow_matching import FlowHead
from vla.models.action_tokenizers.fast import FastTokenizer
from vla.models.build import build
from vla.models.continued import Ranges, continued
from vla.models.normalization import Normalizer
from vla.models.processor import Processor
from vla.models.robot_spec import RobotSpec
from vla.models.vla import VLA
from vla.types import Example, Observation, RTCPrefix

Models = Callable[..., VLA]
RNG = np.random.default_rng(0)
VIEWS = {camera: RNG.integers(0, 256, (32, 32, 3), np.uint8) for camera in ("front", "wrist")}


def arm(
    name: str, joints: int, points: int = 0, rate: float = 10.0, cameras: Sequence[str] = tuple(VIEWS)
) -> RobotSpec:
    """A robot with more components of the state than of the action."""
    names = tuple(f"joint {i} [rad]" for i in range(joints))
    limits = (-1.0,) * joints, (1.0,) * joints
    body = Embodiment(name, tuple(cameras), (*names, "force [N]"), names, *limits, rate)
    wide = Normalizer((-2.0,) * joints, (2.0,) * joints)
    return RobotSpec(body, 4, Normalizer((-2.0,) * (joints + 1), (2.0,) * (joints + 1)), wide, "", points)


def policy(make_model: Models, name: str, robots: Sequence[RobotSpec]) -> VLA:
    base, settings = make_model(robot=False), options(name)
    head = {"kind": settings.pop("head")} | settings
    made = Processor(base.processor.tokenizer, 32, base.backbone.tokens_per_image, robots, head=head)
    return VLA(base.backbone, made).eval()


def seen(robot: RobotSpec, seed: int) -> Observation:
    state = np.random.default_rng(seed).uniform(-1, 1, len(robot.embodiment.state))
    views = {camera: VIEWS[camera] for camera in robot.embodiment.cameras}
    return Observation(views, state, "lift the ring", 0.0)


def acts(model: VLA, robot: RobotSpec, prefix: int = 0) -> list[np.ndarray | None]:
    batch = model.processor.robot_prompt([seen(robot, seed) for seed in range(2)], robot.name)
    committed = RTCPrefix(np.full((2, prefix, robot.action_dim), 0.3))
    return model.generate_actions(batch, committed)[0]


def loss(model: VLA, robot: RobotSpec) -> list[float]:
    example = seen(robot, 3)
    target = np.random.default_rng(4).uniform(-0.5, 0.5, (robot.horizon, robot.action_dim))
    points = np.random.default_rng(5).random((robot.points, 2)) if robot.points else None
    row = Example(VIEWS, example.instruction, target, example.state, embodiment=robot.name, points=points)
    found: list[float] = model(model.processor.batch([row]))[0].tolist()
    return found


def same(found: Sequence[np.ndarray | None], expected: Sequence[np.ndarray | None]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_a_wider_robot_joins_and_the_old_ones_act_as_before(make_model: Models, name: str) -> None:
    six, other, wide = arm("six", 6, points=2), arm("other", 5), arm("wide", 14, points=4)
    for robots in ([six], [other, six]):
        model = policy(make_model, name, robots)
        kind = {"kind": HEADS[name]["head"]}
        expected = {(r.name, k): acts(model, r, k) for r in robots for k in (0, 2)}
        losses = {r.name: loss(model, r) for r in robots}
        assert name == "text" or all(
            chunk is not None for chunk in expected["six", 0]
        )  # text is seldom valid without training
        model = continued("before", model, [wide], kind, Ranges())
        assert [robot.name for robot in model.processor.robots] == [*(r.name for r in robots), "wide"]
        for robot in robots:
            for prefix in (0, 2):
                same(acts(model, robot, prefix), expected[robot.name, prefix])
            if kind["kind"] != "flow":  # whose noise in training differs
                torch.testing.assert_close(loss(model, robot), losses[robot.name], rtol=1e-4, atol=1e-5)
        assert all(c is None or c.shape == (4, 14) for c in acts(model, wide))
        # A saved model is the same, and takes a narrow robot too.
        again = continued("again", model, [arm("late", 6)], kind, Ranges())
        again.processor = again.processor.with_robots(
            [RobotSpec.from_dict(r.to_dict()) for r in again.processor.robots], again.processor.head.settings, "numbers"
        )
        for robot in robots:
            same(acts(again, robot), expected[robot.name, 0])
        assert all(c is None or c.shape == (4, 6) for c in acts(again, arm("late", 6)))


@pytest.mark.parametrize("name", HEADS)
def test_another_horizon(make_model: Models, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    robot, kind = arm("six", 6), {"kind": HEADS[name]["head"]}
    for horizon in (3, 6):
        model = policy(make_model, name, [robot, arm("other", 5)])
        before = acts(model, robot)
        if "fast" in name:
            with pytest.raises(InputError, match="weights of its head .* depend on it: leave horizon out"):
                continued("before", model, [replace(robot, horizon=horizon)], kind, Ranges())
            continue
        model = continued("before", model, [replace(robot, horizon=horizon)], kind, Ranges())
        assert {r.horizon for r in model.processor.robots} == {horizon}
        assert f"chunks of {horizon} steps in place of 4" in capsys.readouterr().out
        chunks = acts(model, robot)
        assert all(chunk is None or chunk.shape == (horizon, 6) for chunk in chunks)
        if name in ("parallel", "l1"):  # causal, so that later actions do not matter
            for one, other in zip(chunks, before, strict=True):
                assert one is not None and other is not None
                np.testing.assert_allclose(one[:3], other[:3], atol=1e-5)


def test_points_cameras_and_rate_of_a_robot_change(make_model: Models, capsys: pytest.CaptureFixture[str]) -> None:
    plain, other = arm("six", 6, points=1, cameras=("front",)), arm("other", 5, points=2)
    model = policy(make_model, "parallel", [plain, other])
    expected = acts(model, other)
    data = arm("six", 6, points=4, rate=20.0)
    model = continued("before", model, [data], {"kind": "parallel"}, Ranges())
    robot = model.processor.robot("six")
    assert (robot.embodiment.cameras, robot.points, robot.fewer_cameras) == (("front", "wrist"), 4, True)
    assert robot.embodiment.control_hz == 20.0
    shown = capsys.readouterr().out
    assert "six: wrist in addition to the cameras front" in shown
    assert "six: predicts where 2 objects are, in place of 1" in shown
    assert "six: 20 Hz as in the data in place of 10 Hz; a chunk is 0.2 s in place of 0.4 s" in shown
    same(acts(model, other), expected)  # with its column of points
    assert len(acts(model, plain)) == 2  # without the new camera
    model = continued("again", model, [arm("six", 6, 2, 20.0, ["wrist"])], {"kind": "parallel"}, Ranges())
    assert model.processor.robot("six").embodiment.cameras == ("front", "wrist")


def test_another_head_replaces_the_old_one(make_model: Models, capsys: pytest.CaptureFixture[str]) -> None:
    six, other = arm("six", 6), arm("other", 5)
    model = policy(make_model, "parallel", [six, other])
    vocabulary = model.processor.text_vocab
    for name in ("flow", "fast", "parallel", "text"):
        settings = options(name)
        before = model.backbone.embed_tokens(torch.arange(vocabulary)[None])
        new = {"kind": settings.pop("head")} | settings
        model = continued("before", model, [arm("six", 6, rate=10.0)], new, Ranges()).eval()
        assert [robot.name for robot in model.processor.robots] == ["six"]
        assert torch.equal(model.backbone.embed_tokens(torch.arange(vocabulary)[None]), before)
        assert f"the action head {name}, new, replaces" in capsys.readouterr().out
        assert model.backbone.vocab_size == model.processor.action_query_token + 1
        assert all(chunk is None or chunk.shape == (4, 6) for chunk in acts(model, six))


def test_a_head_that_depends_on_the_robots_otherwise_is_refused(
    make_model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = FlowMatchingHead.module

    def with_own(self: FlowMatchingHead, backbone: Any, conditioning: int) -> FlowHead:
        made = module(self, backbone, conditioning)
        made.own = torch.nn.Linear(1, conditioning)
        return made

    monkeypatch.setattr(FlowMatchingHead, "module", with_own)
    model = policy(make_model, "flow", [arm("six", 6)])
    with pytest.raises(InputError, match="the action head flow cannot take other robots .*own.weight depends on them"):
        continued("before", model, [arm("wide", 14)], {"kind": "flow"}, Ranges())


def test_options_that_the_weights_determine_are_refused(make_model: Models, tmp_path: Path) -> None:
    robot = arm("six", 6)
    flow = policy(make_model, "flow", [robot])
    assert flow.processor.head is not None
    width = flow.processor.head.settings["expert"]["width"]
    for wrong in ({"adaptive": True}, {"width": width + 8}, {"cross": True}, {"knowledge_insulation": True}):
        (option, value), *_ = wrong.items()
        with pytest.raises(InputError, match=rf"head.{option}={value}: the weights of before determine it: leave it"):
            continued("before", flow, [robot], {"kind": "flow", **wrong}, Ranges())
    with pytest.raises(InputError, match=r"head.bidirectional=True: the weights"):
        continued("before", policy(make_model, "l1", [robot]), [robot], {"kind": "l1", "bidirectional": True}, Ranges())
    same = {"kind": "flow", "width": width, "adaptive": False, "tokens": "fast", "bidirectional": False}
    assert continued("before", flow, [robot], same, Ranges()) is flow
    flow.save(tmp_path)
    for inputs, message in (
        ({"state_encoding": "text"}, "state_encoding is numbers in .*, not text: leave it out"),
        ({"tiles": 4}, "tiles is None in .*, not 4: leave it out"),
    ):
        with pytest.raises(InputError, match=message):
            build(str(tmp_path), [robot], [], {"kind": "flow"}, **inputs)


def test_a_flow_goes_on_with_clean_prefixes(make_model: Models, capsys: pytest.CaptureFixture[str]) -> None:
    robot = arm("six", 6)
    model = policy(make_model, "flow", [robot])
    before = acts(model, robot)
    model = continued("before", model, [robot], {"kind": "flow", "rtc_training": True}, Ranges())
    assert "the action head flow of before goes on with rtc_training=True" in capsys.readouterr().out
    assert model.processor.head is not None and model.processor.head.settings["rtc_training"]
    assert model.continuous_head.rtc_training
    same(acts(model, robot), before)


def test_fast_tokens_are_those_of_the_checkpoint(make_model: Models, tmp_path: Path) -> None:
    robot = arm("six", 6)
    model = policy(make_model, "fast", [robot])
    assert model.processor.head is not None
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
    from_json(model.processor.head.settings["tokenizer"]).save(tmp_path / "own")
    chunks = np.random.default_rng(1).uniform(-1, 1, (50, 4, 6))
    FastTokenizer.train(lambda: [chunks], vocab_size=100).save(tmp_path / "other")
    own = {"kind": "fast", "tokenizer": str(tmp_path / "own")}
    assert continued("before", model, [robot], own, Ranges()) is model
    with pytest.raises(InputError, match=r"head.tokenizer=.*other: the weights of before determine it"):
        continued("before", model, [robot], {"kind": "fast", "tokenizer": str(tmp_path / "other")}, Ranges())

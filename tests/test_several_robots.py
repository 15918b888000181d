"""Several robots in one model: each with its numbers, none with another's, and nothing lost by the company."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import UInt8

from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.models.action_heads.decoding import median_bins
from vla.models.backbone_inputs import DecoderInput
from vla.models.normalization import Normalizer
from vla.models.processor import IGNORE, Processor
from vla.models.robot_spec import RobotSpec
from vla.models.vla import VLA
from vla.policies.vla import VlaPolicy
from vla.types import Example, Observation

Models = Callable[..., VLA]


def views(seed: int) -> Mapping[str, UInt8[np.ndarray, "h w 3"]]:
    rng = np.random.default_rng(seed)
    return {camera: rng.integers(0, 256, (32, 32, 3), np.uint8) for camera in ("front", "wrist")}


SLIM = RobotSpec(
    embodiment=Embodiment(
        name="slim",
        cameras=("wrist",),
        state=("x [m]", "y [m]", "z [m]"),
        action=("x [m]", "y [m]"),
        action_low=(-0.5, -0.5),
        action_high=(0.5, 0.5),
        control_hz=5.0,
    ),
    horizon=4,
    state=Normalizer((-0.3, -0.3, -0.2), (0.3, 0.3, 0.2)),
    action=Normalizer((-0.1, -0.1), (0.1, 0.1)),
    statistics_hash="none",
    points=1,
)
"""A robot with more state and fewer actions, cameras and points than the toy."""


@pytest.fixture(scope="module")
def pair(make_model: Models) -> VLA:
    """A model that drives the toy, of two points, and the slim robot."""
    base = make_model(robot=False)
    robots = (replace(make_model().processor.robot(), points=2), SLIM)
    processor = Processor(base.processor.tokenizer, 32, base.backbone.tokens_per_image, robots)
    return VLA(base.backbone, processor).eval()


def mixed() -> list[Example]:
    """Examples of both robots and a question, one after the other."""
    rng = np.random.default_rng(3)
    toys = [
        Example(
            views(i),
            text,
            rng.uniform(0, 1, (4, 3)),
            rng.uniform(-1, 1, 2),
            points=rng.random((2, 2)),
            embodiment="toy",
        )
        for i, text in enumerate(("lift the ring", "lift the blue cube that is left of the ring"))
    ]
    slims = [
        Example(
            {"wrist": views(i)["front"]},
            f"reach the {word}",
            state[:2] + rng.uniform(-0.1, 0.1, (4, 2)),
            state,
            np.array([True, True, True, word == "cube"]),
            points=rng.random((1, 2)),
            prefix_length=int(word == "cube"),
            embodiment="slim",
        )
        for i, (word, state) in enumerate(zip(("cube", "ring"), rng.uniform(-0.2, 0.2, (2, 3)), strict=True))
    ]
    question = Example(views(7), "what color is the cube?", "red")
    return [toys[0], slims[0], question, slims[1], toys[1]]


def test_robots_in_one_batch_cost_what_they_cost_apart(pair: VLA) -> None:
    with torch.no_grad():
        losses, rows, _ = pair(pair.processor.batch(mixed()))
        for name in ("toy", "slim", ""):
            chosen = [i for i, e in enumerate(mixed()) if e.embodiment == name]
            apart, *_ = pair(pair.processor.batch([mixed()[i] for i in chosen]))
            together = torch.cat([losses[rows == i] for i in chosen])
            torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_each_robot_has_its_own_tokens_and_numbers_and_padding_bears_no_loss(pair: VLA) -> None:
    batch = pair.processor.batch(mixed())
    assert batch.robot.tolist() == [0, 1, -1, 1, 0]
    actions, points = batch.labels >= pair.text_vocab, [4, 2, 0, 2, 4]
    # The cube's first action is given, the ring's last lies beyond its episode.
    assert actions.sum(1).tolist() == [4 * 3, 3 * 2, 0, 3 * 2, 4 * 3]
    said = (batch.labels != IGNORE).sum(1) - actions.sum(1)
    assert [n for i, n in enumerate(said.tolist()) if i != 2] == [n for i, n in enumerate(points) if i != 2]
    assert not (batch.labels[~batch.attention_mask] != IGNORE).any()
    assert batch.state.shape == (5, 3) and batch.points.shape == (5, 2, 3)
    assert (batch.state[[0, 4], 2] == 0).all() and (batch.points[[1, 3], 1] == 0).all()
    slim = mixed()[1].state
    assert slim is not None
    np.testing.assert_allclose(batch.state[1].numpy(), SLIM.state.normalize(slim), rtol=1e-6)
    labels = batch.labels[1][actions[1]].numpy() - pair.text_vocab
    normalized = SLIM.bins.decode(np.concatenate([[0, 0], labels]), 4, 2)
    assert normalized is not None
    decoded = SLIM.denormalize_actions(normalized, slim)
    assert (np.abs(decoded - mixed()[1].target)[1:] <= SLIM.bins.width / 2 * 0.1 + 1e-9).all()
    assert batch.image_mask.tolist() == [[True, True], [True, False], [True, True], [True, False], [True, True]]


def test_places_that_a_robot_has_not_learn_nothing_from_it(pair: VLA) -> None:
    pair.zero_grad()
    pair(pair.processor.batch([mixed()[1]]))[0].sum().backward()
    learned = pair.action_position_embedding.weight.grad.abs().sum(1).reshape(4, 3) > 0
    pair.zero_grad()
    # All steps, of three components the two that the slim robot has: the same step has the same place for all robots.
    assert learned.tolist() == [[True, True, False]] * 4


@pytest.mark.parametrize("name", ["toy", "slim"])
def test_a_checkpoint_of_several_robots_drives_each(pair: VLA, tmp_path: Path, name: str) -> None:
    pair.save(tmp_path)
    policy = VlaPolicy.load(tmp_path, name)
    assert policy.embodiment.name == name
    example = next(e for e in mixed() if e.embodiment == name)
    assert example.state is not None
    chunk = policy.predict(Observation(example.images, example.state, example.prompt, 0.5))
    assert chunk is not None and chunk.points is not None
    assert chunk.actions.shape == (4, len(policy.embodiment.action))
    assert (chunk.dt, len(chunk.points)) == (
        1 / policy.embodiment.control_hz,
        policy.model.processor.robot(name).points,
    )
    # What the training pass holds for likeliest after these points, with all actions asked for.
    asked = replace(example, points=chunk.points.astype(np.float64), prefix_length=0, mask=None)
    batch = pair.processor.batch([asked, mixed()[2]])
    with torch.no_grad():
        hidden, _ = pair.backbone.forward(DecoderInput(pair._prefix(batch)[0], batch.attention_mask))
        places = torch.nonzero(batch.labels[0] >= pair.text_vocab)[:, 0] - 1
        bins = median_bins(
            pair.backbone.logits(hidden[0, places])[:, pair.text_vocab : pair.processor.action_query_token]
        )
    robot = pair.processor.robot(name)
    normalized = robot.bins.decode(bins.numpy(), 4, robot.action_dim)
    assert normalized is not None
    expected = robot.denormalize_actions(normalized, example.state)
    np.testing.assert_allclose(chunk.actions, expected, atol=1e-3)


def test_which_robot_must_be_said_where_there_are_several(pair: VLA) -> None:
    with pytest.raises(InputError, match="drives toy, slim: choose one with embodiment="):
        VlaPolicy(pair)
    with pytest.raises(InputError, match="drives toy, slim, not widowx"):
        VlaPolicy(pair, "widowx")
    with pytest.raises(InputError, match="choose one with embodiment="):
        pair.processor.batch([replace(mixed()[0], embodiment="")])
    with pytest.raises(InputError, match="of one robot"):
        pair.generate_actions(pair.processor.batch(mixed()[:2]))
    with pytest.raises(InputError, match="of one robot"):
        pair.generate_actions(pair.processor.question_prompt(["what"], [views(0)]))


def test_one_robots_numbers_are_told_apart_from_anothers(pair: VLA) -> None:
    batch = pair.processor.batch(mixed()[1:2])
    with torch.no_grad():
        losses = [pair(replace(batch, robot=torch.tensor([number])))[0] for number in (0, 1)]
    assert not torch.isclose(losses[0], losses[1]).all()

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import UInt8

from vla.common.images import resize
from vla.errors import InputError
from vla.models.processor import IGNORE, Processor
from vla.models.vla import VLA
from vla.types import Example, Observation

Models = Callable[..., VLA]


def picture(seed: int, height: int = 32, width: int = 32) -> UInt8[np.ndarray, "h w 3"]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def robot_example(seed: int = 0, **fields: Any) -> Example:
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {
        "images": {"front": picture(seed), "wrist": picture(seed + 1)},
        "prompt": "lift the ring",
        "target": rng.uniform(-1, 1, (4, 3)) * [1, 1, 0.5] + [0, 0, 0.5],
        "state": rng.uniform(-1, 1, 2),
        "mask": np.ones(4, bool),
        "source": "robot",
    }
    return Example(**(values | fields))


def question(text: str = "what color is the cube?", answer: str = "red", **fields: Any) -> Example:
    return Example(**({"images": {"front": picture(3)}, "prompt": text, "target": answer, "source": "vqa"} | fields))


@pytest.fixture(scope="module")
def processor(make_model: Models) -> Processor:
    return make_model().processor


def labelled(processor: Processor, *examples: Example) -> list[list[int]]:
    """The labels of each row that bear a loss: text stands where it is labelled, of an action nothing is told."""
    batch = processor.batch(examples)
    chosen = batch.labels != IGNORE
    said = chosen & (batch.labels < processor.text_vocab)
    assert torch.equal(batch.labels[said], batch.input_ids[said])
    asked = torch.nonzero(chosen & ~said)
    assert (batch.input_ids[asked[:, 0], asked[:, 1] - 1] == processor.action_query_token).all()
    assert not (chosen & ~batch.attention_mask).any()
    return [row[keep].tolist() for row, keep in zip(batch.labels, chosen, strict=True)]


def test_only_the_answer_and_its_end_are_labelled(processor: Processor) -> None:
    (labels,) = labelled(processor, question(answer="blue"))
    assert labels[-1] == processor.eos
    assert processor.text(labels[:-1]) == "blue"


def test_every_turn_of_a_conversation_is_labelled(processor: Processor) -> None:
    (labels,) = labelled(processor, question(turns=(("where is the cube?", "left"), ("what shape?", "cube"))))
    ends = [i for i, token in enumerate(labels) if token == processor.eos]
    starts = [0, *(end + 1 for end in ends[:-1])]
    texts = [processor.text(labels[start:end]) for start, end in zip(starts, ends, strict=True)]
    assert texts == ["red", "left", "cube"]


def test_a_point_is_two_tokens_and_reads_as_it_was_written(processor: Processor) -> None:
    (labels,) = labelled(processor, question("where is the cube?", "7 93"))
    assert len(labels) == 3
    assert processor.text(labels[:-1]) == "7 93"


def test_only_the_actions_are_labelled_and_they_decode(processor: Processor) -> None:
    example = robot_example()
    (labels,) = labelled(processor, example)
    assert example.state is not None
    normalized = processor.robot().bins.decode(np.array(labels) - processor.text_vocab, 4, 3)
    assert normalized is not None
    decoded = processor.robot().denormalize_actions(normalized, example.state)
    half_a_bin = processor.robot().bins.width / 2 * np.array([2, 2, 0.5])
    assert (np.abs(decoded - np.asarray(example.target)) <= half_a_bin + 1e-9).all()


def test_steps_beyond_the_episode_bear_no_loss(processor: Processor) -> None:
    mask = np.array([True, True, False, False])
    whole, cut = labelled(processor, robot_example(), robot_example(mask=mask))
    assert cut == whole[: 2 * 3]


def test_rows_are_padded_where_the_next_token_is_not(processor: Processor) -> None:
    short, long = "red?", "what color is the cube to the left of the ring?"
    right = processor.batch([question(short), question(long)])
    assert right.attention_mask[0, 0]
    assert not right.attention_mask[0, -1]
    left = processor.question_prompt([short, long], [{"front": picture(3)}] * 2)
    assert not left.attention_mask[0, 0]
    answer = processor.tokenizer.token_to_id("<answer>")
    assert left.input_ids[:, -1].tolist() == [answer] * 2
    for batch in (right, left):
        assert (batch.input_ids[~batch.attention_mask] == processor.pad).all()
        assert (batch.labels[~batch.attention_mask] == IGNORE).all()
    alone = processor.question_prompt([short], [{"front": picture(3)}])
    assert left.input_ids[0, left.attention_mask[0]].tolist() == alone.input_ids[0].tolist()


def test_images_are_placed_row_by_row(processor: Processor) -> None:
    batch = processor.batch([question(), robot_example(), question(images={})])
    assert batch.image_mask.tolist() == [[True, False], [True, True], [False, False]]
    places = (batch.input_ids == processor.image).sum(1)
    assert places.tolist() == [processor.tokens_per_image * n for n in (1, 2, 0)]


@pytest.mark.parametrize("size", [(32, 32), (48, 64), (17, 9)])
def test_training_sees_what_deployment_sees_to_the_bit(processor: Processor, size: tuple[int, int]) -> None:
    images = {"front": picture(5, *size), "wrist": picture(6, *size)}
    row = processor.batch([robot_example(images=images)])
    state = robot_example().state
    assert state is not None
    prompt = processor.robot_prompt([Observation(images, state, "lift the ring", 1.5)])
    length = prompt.input_ids.shape[1]
    assert prompt.attention_mask.all()
    assert torch.equal(row.input_ids[:, :length], prompt.input_ids)
    assert torch.equal(row.images, prompt.images)
    assert torch.equal(row.image_mask, prompt.image_mask)
    assert torch.equal(row.state, prompt.state)
    assert (row.labels[:, length + 1 :] != IGNORE).all()
    assert (row.labels[:, : length + 1] == IGNORE).all()


def test_the_saved_processor_makes_the_same_batches_to_the_bit(processor: Processor, tmp_path: Path) -> None:
    processor.save(tmp_path)
    loaded = Processor.load(tmp_path)
    assert loaded.robots == processor.robots
    examples = [robot_example(images={"front": picture(5, 40, 60), "wrist": picture(6, 9, 8)}), question()]
    for ours, theirs in zip(*([p.batch(examples)] for p in (processor, loaded)), strict=True):
        for name in ("input_ids", "attention_mask", "labels", "images", "image_mask", "state", "robot"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        assert ours.source == theirs.source


def test_the_order_in_which_cameras_come_is_the_embodiments(processor: Processor) -> None:
    example = robot_example()
    turned = replace(example, images=dict(reversed(example.images.items())))
    assert torch.equal(processor.batch([example]).images, processor.batch([turned]).images)


def test_a_missing_camera_is_named(processor: Processor) -> None:
    example = robot_example(images={"front": picture(0)})
    assert example.state is not None
    with pytest.raises(InputError, match="camera wrist is missing"):
        processor.robot_prompt([Observation(example.images, example.state, "lift", 0.0)])
    with pytest.raises(InputError, match="camera wrist is missing"):
        processor.batch([example])


@pytest.mark.parametrize(
    ("state", "message"),
    [([0.0, float("nan")], "turn .* is not finite"), ([0.0, 1.0, 2.0], "3 components")],
)
def test_a_state_that_does_not_fit_is_refused(processor: Processor, state: list[float], message: str) -> None:
    observation = Observation(robot_example().images, np.array(state), "lift", 0.0)
    with pytest.raises(InputError, match=message):
        processor.robot_prompt([observation])


def test_an_action_that_is_not_finite_is_refused(processor: Processor) -> None:
    target = np.zeros((4, 3))
    target[2, 1] = np.nan
    with pytest.raises(InputError, match="turn .* is not finite"):
        processor.batch([robot_example(target=target)])


def test_special_tokens_in_a_users_text_are_text(processor: Processor) -> None:
    batch = processor.batch([question("is <image> or <answer> or <eos> red?")])
    assert int((batch.input_ids == processor.image).sum()) == processor.tokens_per_image
    assert int((batch.input_ids == processor.tokenizer.token_to_id("<answer>")).sum()) == 1
    assert int((batch.input_ids == processor.eos).sum()) == 1


def test_any_text_survives(processor: Processor) -> None:
    text = "grün 立方体 \N{ROBOT FACE} 12 34"
    (labels,) = labelled(processor, question(answer=text))
    assert processor.text(labels[:-1]) == text


def test_decoded_actions_stay_within_the_embodiments_limits(processor: Processor) -> None:
    for value in (-1.5, 1.5):
        actions = processor.robot().denormalize_actions(np.full((4, 3), value), np.zeros(2))
        embodiment = processor.robot().embodiment
        assert (actions >= embodiment.action_low).all()
        assert (actions <= embodiment.action_high).all()


def test_a_joints_target_is_told_as_its_distance_from_the_joint(processor: Processor) -> None:
    state, shift = np.array([0.25, -0.5]), np.array([0.5, 0.25])
    target = np.tile([0.5, -0.75, 0.25], (4, 1))
    here, there = labelled(
        processor,
        robot_example(target=target, state=state),
        robot_example(target=target + [*shift, 0], state=state + shift),
    )
    assert here == there


def test_actions_under_way_are_input_and_bear_no_loss(processor: Processor) -> None:
    example = robot_example()
    whole, rest = labelled(processor, example, replace(example, prefix_length=2))
    assert rest == whole[2 * 3 :]
    (row,) = processor.batch([replace(example, prefix_length=2)]).input_ids
    assert row[row >= processor.text_vocab].tolist() == [*whole[: 2 * 3], *[processor.action_query_token] * 6]


def test_points_are_said_before_the_action(make_model: Models) -> None:
    processor = make_model(points=2).processor
    points = np.array([[0.071, 0.939], [1.2, 0.5]])
    seen, unlabelled = labelled(
        processor, robot_example(points=points), robot_example(points=np.array([[np.nan, np.nan], [-1.0, 0.2]]))
    )
    assert processor.text(seen[:2]) == "7 93"
    assert seen[2:4] == [processor.eos] * 2
    assert len(seen) == 4 + 12
    assert unlabelled[:2] == [processor.eos] * 2
    assert len(unlabelled) == 2 + 12
    (nobody_knows,) = labelled(processor, robot_example())
    assert len(nobody_knows) == 12


def test_a_model_that_says_no_points_passes_over_them(processor: Processor) -> None:
    with_points, without = labelled(processor, robot_example(points=np.full((2, 2), 0.5)), robot_example())
    assert with_points == without


@pytest.mark.parametrize(("count", "message"), [(3, "cannot divide 3 points"), (4, "objects in 2 cameras")])
def test_points_that_the_model_cannot_say_are_refused(make_model: Models, count: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_model(points=2).processor.batch([robot_example(points=np.zeros((count, 2)))])


def test_a_point_is_said_in_the_place_of_its_camera_and_thing(make_model: Models) -> None:
    """Of two things in two cameras an example may know one, and have its cameras in another order."""
    processor = make_model(points=4).processor
    front, wrist = robot_example().images["front"], robot_example().images["wrist"]
    one = robot_example(points=np.array([[0.11, 0.12], [0.31, 0.32]]))
    turned = replace(one, images={"wrist": wrist, "front": front}, points=np.array([[0.31, 0.32], [0.11, 0.12]]))
    both = robot_example(points=np.array([[0.11, 0.12], [0.21, 0.22], [0.31, 0.32], [0.41, 0.42]]))
    said = labelled(processor, one, turned, both)
    assert [processor.text(labels[:-12]) for labels in said] == ["11 12 31 32"] * 2 + ["11 12 21 22 31 32 41 42"]
    batch = processor.batch([one, turned, both])
    assert torch.equal(batch.labels[0], batch.labels[1]) and torch.equal(batch.images[0], batch.images[1])
    # All rows have as many places; that there is no second thing is learned as that it is in no image.
    assert (batch.labels[0] == processor.eos).sum() == 4 + (batch.labels[2] == processor.eos).sum()
    assert batch.prompt_length.unique().numel() == 1
    assert batch.points[0, :, 2].tolist() == [1, 0, 1, 0] and batch.points[2, :, 2].tolist() == [1] * 4


def test_points_that_nobody_knows_are_any_in_training_and_bear_no_loss(make_model: Models) -> None:
    processor = make_model(points=4).processor
    points = np.array([[0.11, 0.12], [np.nan, np.nan], [0.31, 0.32], [np.nan, np.nan]])
    examples = [robot_example(points=points)] * 40
    batch = processor.batch(examples, [np.random.default_rng(seed) for seed in range(40)])
    plain = processor.batch(examples[:1])
    assert (batch.labels == plain.labels).all()
    assert (batch.points[:, [0, 2]] == plain.points[:, [0, 2]]).all()
    drawn = batch.points[:, [1, 3]]
    shown = drawn[..., 2].bool()
    # Not in the image in about half of the rows, elsewhere all over it, and said in tokens as it is told in numbers.
    assert 10 < (~shown).all(1).sum() < 30 and (shown.all(1) | (~shown).all(1)).all()
    assert drawn[shown][:, :2].std(0).min() > 0.4
    first = int(plain.prompt_length[0]) - 8
    tokens = batch.input_ids[:, first : first + 8].unflatten(1, (4, 2))[:, [1, 3]]
    assert ((tokens == processor.eos).all(-1) == ~shown).all()


def test_pixels_are_the_resized_image_normalised(processor: Processor) -> None:
    image = picture(8, 50, 40)
    mean, std = (0.5, 0.25, 0.1), (0.25, 0.5, 0.2)
    vlm = Processor(processor.tokenizer, 32, processor.tokens_per_image, mean=mean, std=std)
    pixels = vlm.pixels(vlm.question_prompt(["red?"], [{"front": image}]).images)[0, 0]
    assert pixels.is_contiguous()
    expected = (resize(image, 32).astype(np.float64) / 255 - mean) / std
    np.testing.assert_allclose(pixels.permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_a_model_without_a_robot_says_so(make_model: Models) -> None:
    vlm = make_model(robot=False).processor
    with pytest.raises(InputError, match="without actions"):
        vlm.robot_prompt([Observation({"front": picture(0)}, np.zeros(2), "lift", 0.0)])

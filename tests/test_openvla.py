"""OpenVLA and OpenVLA-OFT as native models, against a plain reading of checkpoints in the published layout."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float
from openvla_checkpoints import (
    BINS,
    EMPTY,
    RARE,
    STATISTICS,
    WORDS,
    actions_of,
    greedy,
    image_tokens,
    llama,
    llama_tokenizer,
    oft_chunk,
    opening,
    prompt_ids,
    unnormalised,
    write,
    write_oft,
)
from PIL import Image

from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.models.backbones.prismatic import centre
from vla.models.engine.engine import Engine
from vla.models.released.openvla import load_openvla
from vla.models.vla import VLA
from vla.training.lora import adapt, merged
from vla.types import Example, Observation, RTCPrefix

AXES = ("x [m]", "y [m]", "z [m]", "roll [rad]", "pitch [rad]", "yaw [rad]", "grip [1]")
ARM = Embodiment(
    name="arm",
    cameras=("front",),
    state=tuple(f"s{i} [1]" for i in range(8)),
    action=AXES,
    action_low=(-10.0,) * 7,
    action_high=(10.0,) * 7,
    control_hz=5.0,
    action_mode=("delta",) * 6 + ("absolute",),
)
TWO_CAMERAS = replace(ARM, cameras=("front", "wrist"))
TASKS = ("Put the Cup on the plate", "a", "open  the drawer_2", "", f"pick {RARE} up", "the <unk> <s> thing")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("openvla")
    write(path)
    return path


@pytest.fixture(scope="module")
def oft(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    path = tmp_path_factory.mktemp("oft")
    return path, write(path, {"libero": STATISTICS}), write_oft(path)


def picture(seed: int, height: int = 480, width: int = 640) -> np.ndarray[Any, Any]:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height)))


def observation(task: str, body: Embodiment = ARM, seed: int = 0) -> Observation:
    state = np.random.default_rng(seed).normal(size=8)
    images = {camera: picture(seed * 10 + i, 480 - 100 * i) for i, camera in enumerate(body.cameras)}
    return Observation(images, state, task, 0.0)


def actions(model: Any, processor: Any, observations: list[Observation]) -> Float[np.ndarray, "b h a"]:
    robot = processor.robots[0]
    chunks, _ = model.generate_actions(processor.robot_prompt(observations))
    assert all(chunk is not None for chunk in chunks)
    return np.stack([robot.denormalize_actions(c, o.state) for c, o in zip(chunks, observations, strict=True)])


def example(body: Embodiment, steps: int, seed: int = 0) -> Example:
    target = np.random.default_rng(seed).uniform(-0.4, 0.4, (steps, 7))
    return Example(observation("", body, seed).images, TASKS[0], target, observation("", body, seed).state)


def test_actions_equal_those_of_the_original_in_robot_units(folder: Path, tmp_path: Path) -> None:
    weights = write(tmp_path)
    policy = load_openvla(folder, "one")
    model = policy.model([policy.robot(ARM)])
    seen = [observation(task, seed=i) for i, task in enumerate(TASKS[:4])]
    tokens = [greedy(weights, o.images["front"], o.instruction) for o in seen]
    assert all(WORDS - BINS <= token < WORDS for row in tokens for token in row)
    assert len({token for row in tokens for token in row}) > 4
    expected = np.stack([actions_of(np.array(row))[None] for row in tokens])
    np.testing.assert_allclose(actions(model, model.processor, seen), expected, atol=1e-6)
    for one, wanted in zip(seen, expected, strict=True):
        np.testing.assert_allclose(actions(model, model.processor, [one])[0], wanted, atol=1e-6)
        np.testing.assert_allclose(actions(Engine(model), model.processor, [one])[0], wanted, atol=1e-6)


def test_prompt_tokens_are_the_originals(folder: Path) -> None:
    policy = load_openvla(folder, "one")
    processor = policy.processor.with_robots([policy.robot(ARM)], policy.head, "numbers")
    empty = llama_tokenizer().token_to_id(EMPTY)
    for task in TASKS[:4]:
        ids = processor.robot_prompt([observation(task)]).input_ids[0].tolist()
        *words, last = prompt_ids(task)
        assert last == empty
        assert ids == [1, *[0] * 4, *words], "<s>, the image, the words; the last is the action query token"
    # The original's token of this character is an action's, and its tokens of the others are special ones.
    for task in TASKS[4:]:
        ids = processor.robot_prompt([observation(task)]).input_ids[0]
        assert int((ids == 0).sum()) == 4
        assert int((ids == 1).sum()) == 1
        assert int(ids.max()) < processor.text_vocab == WORDS - BINS


def test_loss_of_a_training_row_is_plain_cross_entropy(folder: Path, tmp_path: Path) -> None:
    weights = write(tmp_path)
    policy = load_openvla(folder, "one")
    model = policy.model([policy.robot(ARM)])
    shown = example(ARM, 1)
    losses, *_ = model(model.processor.batch([shown]))
    stats = {name: np.array(values) for name, values in STATISTICS["action"].items()}
    unit = np.clip(2 * (shown.target[0] - stats["q01"]) / (stats["q99"] - stats["q01"] + 1e-12) - 1, -1, 1)  # type: ignore[operator,index]
    unit = np.where(stats["mask"], unit, shown.target[0])  # type: ignore[index]
    labels = [*(WORDS - np.digitize(unit, np.linspace(-1, 1, BINS))).tolist(), 2]
    ids = prompt_ids(TASKS[0])
    seen = [image_tokens(weights, shown.images["front"], Image.Resampling.BICUBIC)]  # type: ignore[arg-type]
    hidden = llama(weights, opening(weights, seen, [*ids, *labels[:-1]]), causal=True)[-8:]
    logits = hidden @ weights["language_model.lm_head.weight"][: WORDS + 1].T
    torch.testing.assert_close(
        losses, F.cross_entropy(logits, torch.tensor(labels), reduction="none"), atol=1e-4, rtol=0
    )


def test_oft_actions_equal_those_of_the_original_in_robot_units(oft: tuple[Path, Any, Any]) -> None:
    path, weights, modules = oft
    policy = load_openvla(path)
    model = policy.model([policy.robot(TWO_CAMERAS)])
    seen = [observation(task, TWO_CAMERAS, i) for i, task in enumerate(TASKS[:3])]
    expected = [
        unnormalised(oft_chunk(weights, modules, list(o.images.values()), o.state, o.instruction).numpy(), 1e-8)
        for o in seen
    ]
    assert expected[0].shape == (8, 7)
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    np.testing.assert_allclose(actions(model, model.processor, seen), np.stack(expected), atol=1e-4)
    np.testing.assert_allclose(actions(Engine(model), model.processor, seen), np.stack(expected), atol=1e-4)


def test_oft_loss_is_the_distance_of_the_predicted_chunk(oft: tuple[Path, Any, Any]) -> None:
    path, weights, modules = oft
    policy = load_openvla(path)
    model = policy.model([policy.robot(TWO_CAMERAS)])
    rows = [replace(example(TWO_CAMERAS, 8, i), prompt=TASKS[i]) for i in range(2)]
    losses, *_ = model(model.processor.batch(rows))
    robot = model.processor.robots[0]
    expected = [
        np.abs(
            oft_chunk(weights, modules, list(row.images.values()), row.state, row.prompt).numpy()  # type: ignore[arg-type]
            - robot.normalize_actions(row.target, row.state)  # type: ignore[arg-type]
        ).ravel()
        for row in rows
    ]
    torch.testing.assert_close(losses, torch.from_numpy(np.concatenate(expected)).float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["bins", "oft"])
def test_training_reaches_every_part_beside_questions(kind: str, folder: Path, oft: tuple[Path, Any, Any]) -> None:
    policy, body = (load_openvla(folder, "one"), ARM) if kind == "bins" else (load_openvla(oft[0]), TWO_CAMERAS)
    model = policy.model([policy.robot(body)]).train()
    question = Example({"front": picture(3)}, f"What is {RARE}?", "a cup", None)
    batch = model.processor.batch([example(body, policy.horizon), question])
    losses, row, _ = model(batch)
    assert set(row.tolist()) == {0, 1}
    losses.sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert without <= {"conditioning_mlp.0.weight", "conditioning_mlp.0.bias"}, "its output starts at zero"


@pytest.mark.parametrize("kind", ["bins", "oft"])
def test_saved_policy_acts_the_same(kind: str, folder: Path, oft: tuple[Path, Any, Any], tmp_path: Path) -> None:
    policy, body = (load_openvla(folder, "one"), ARM) if kind == "bins" else (load_openvla(oft[0]), TWO_CAMERAS)
    model = policy.model([policy.robot(body)])
    model.save(tmp_path)
    again = VLA.load(tmp_path)
    seen = [observation(TASKS[0], body)]
    np.testing.assert_array_equal(
        actions(again, again.processor, seen), actions(model, model.processor, seen), strict=True
    )
    assert again.processor.to_dict() == model.processor.to_dict()


def test_oft_prefix_is_conditioning_that_training_can_use(oft: tuple[Path, Any, Any]) -> None:
    policy = load_openvla(oft[0])
    model = policy.model([policy.robot(TWO_CAMERAS)])
    batch = model.processor.robot_prompt([observation(TASKS[0], TWO_CAMERAS)])
    prefix = RTCPrefix(np.full((1, 3, 7), 0.5))
    (plain,), _ = model.generate_actions(batch)
    (before,), _ = model.generate_actions(batch, prefix)
    np.testing.assert_array_equal(plain, before)
    torch.nn.init.normal_(model.conditioning_mlp[2].weight)
    (after,), _ = model.generate_actions(batch, prefix)
    (unprefixed,), _ = model.generate_actions(batch)
    assert np.abs(np.array(after) - np.array(unprefixed)).max() > 1e-3


def test_dataset_of_the_statistics_is_chosen(folder: Path, oft: tuple[Path, Any, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unnorm_key: one, two"):
        load_openvla(folder).robot(ARM)
    with pytest.raises(InputError, match="unknown unnorm_key 'tow'.*did you mean 'two'.*one, two"):
        load_openvla(folder, "tow")
    with pytest.raises(InputError, match="7 components, that of arm 6"):
        six = Embodiment("arm", ("front",), ARM.state, AXES[:6], (-1.0,) * 6, (1.0,) * 6, 5.0, ("delta",) * 6)
        load_openvla(folder, "one").robot(six)
    write(tmp_path, {})
    with pytest.raises(InputError, match="has no statistics of its action: it is a base"):
        load_openvla(tmp_path).robot(ARM)
    assert load_openvla(oft[0]).action is not None, "the only dataset needs no choice"


def test_components_without_normalisation_are_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = load_openvla(folder, "two")
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "action component 7 of two is not normalised (from 0 to 1" in said
    assert policy.action is not None
    assert (policy.action.low[6], policy.action.high[6]) == (-1.0, 1.0)


def test_crop_keeps_the_centre(folder: Path) -> None:
    policies = [load_openvla(folder, "one", crop=crop) for crop in (1.0, 0.9, 0.25)]
    backbones: list[Any] = [policy.backbone for policy in policies]
    ramp = torch.linspace(0, 1, 28).expand(1, 3, 28, 28)
    cropped = centre(ramp, 0.25)
    assert cropped[0, 0, 0, 0] == pytest.approx(0.25, abs=1 / 255)
    assert cropped[0, 0, 0, -1] == pytest.approx(0.75, abs=1 / 255)
    assert [backbone.config["area"] for backbone in backbones] == [1.0, 0.9, 0.25]
    whole, most, quarter = (backbone.image_features(ramp) for backbone in backbones)
    assert 0 < (whole - most).abs().max() < (whole - quarter).abs().max()
    with pytest.raises(InputError, match="crop"):
        load_openvla(folder, "one", crop=1.5)


def test_question_is_written_as_prismatic_does(folder: Path) -> None:
    processor = load_openvla(folder, "one").processor
    words = llama_tokenizer()
    rows = processor.batch([Example({"a": picture(0), "b": picture(1)}, "What is in it?", "the cup", None)])
    prompt, answer = (words.encode(text).ids[1:] for text in ("In: What is in it?\nOut:", "the cup"))
    assert rows.input_ids[0].tolist() == [1, *[0] * 8, *prompt, *answer, 2]
    assert rows.labels[0].tolist()[-len(answer) - 1 :] == [*answer, 2]


@pytest.mark.parametrize("kind", ["bins", "oft"])
def test_adapters_merge_into_the_policy(kind: str, folder: Path, oft: tuple[Path, Any, Any]) -> None:
    policy, body = (load_openvla(folder, "one"), ARM) if kind == "bins" else (load_openvla(oft[0]), TWO_CAMERAS)
    model = policy.model([policy.robot(body)])
    plain = copy.deepcopy(model)
    batch = model.processor.batch([example(body, policy.horizon)])
    before = model(batch)[0]
    adapt(model, 2)
    torch.testing.assert_close(model(batch)[0], before)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    weights = merged(model, {name: parameter.detach() for name, parameter in model.named_parameters()})
    assert not plain.load_state_dict(weights, strict=False).unexpected_keys
    after = model(batch)[0]
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(plain(batch)[0], after, atol=1e-4, rtol=1e-4)

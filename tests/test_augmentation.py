from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float, UInt8

from vla.common.images import fitted, resize
from vla.datasets.mixture import Mixture
from vla.errors import InputError
from vla.models.vla import VLA
from vla.training.augment import augment, change_light
from vla.training.augmentation import AMOUNTS, Augmentation
from vla.training.batches import micro_batches
from vla.training.cotrain import train
from vla.training.distributed import DistributedContext
from vla.training.geometry import check, homography, move, move_points, report, warp
from vla.training.state import Progress, TrainState
from vla.training.step import backward
from vla.training.train_config import TrainConfig
from vla.types import Example

Models = Callable[..., VLA]
ALONE = DistributedContext(torch.device("cpu"))
EVERYTHING: dict[str, Any] = dict.fromkeys(AMOUNTS, 0.1) | {"rotation": 10.0, "blur": 0.7, "cutout": 0.3}
GEOMETRY: dict[str, Any] = {"crop": 0.1, "shift": 0.1, "scale": 0.1, "rotation": 10.0, "perspective": 0.1}
BOTH: dict[str, Any] = {"cameras": ["front", "wrist"]}
SIDE = st.integers(33, 90)


def painted(height: int, width: int, point: Float[np.ndarray, "2"]) -> UInt8[np.ndarray, "h w 3"]:
    """Black, with a bright blob whose centre is at the point."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    distance = (columns - point[0] * width) ** 2 + (rows - point[1] * height) ** 2
    return np.repeat(np.rint(255 * np.exp(-distance / (2 * 1.5**2)))[..., None], 3, 2).astype(np.uint8)


def centre(image: torch.Tensor) -> Float[np.ndarray, "2"]:
    """x and y [pixels] of the centre of what is bright."""
    light = image.mean(0).numpy().astype(float)
    rows, columns = np.mgrid[: light.shape[0], : light.shape[1]] + 0.5
    return np.array([(light * columns).sum(), (light * rows).sum()]) / light.sum()


class Rows(list[Example]):
    def example(self, index: int, rng: np.random.Generator) -> Example:
        return self[index]


def demonstrations(points: tuple[tuple[float, float], ...] = ((0.4, 0.6), (0.5, 0.5)), count: int = 4) -> Rows:
    rng = np.random.default_rng(0)
    where = np.array(points)
    return Rows(
        Example(
            {c: painted(48, 64, where[i]) for i, c in enumerate(("front", "wrist"))},
            "lift the ring",
            rng.uniform([-1, -1, 0], 1, (4, 3)),
            rng.uniform(-1, 1, 2),
            points=where,
        )
        for _ in range(count)
    )


def questions() -> Rows:
    image = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    return Rows([Example({"front": image}, "where is it?", "12 34")])


def mixture(*sources: Rows) -> Mixture:
    return Mixture({str(i): source for i, source in enumerate(sources)}, {str(i): 1.0 for i in range(len(sources))}, 0)


def plan(augmentation: Any, **fields: Any) -> TrainConfig:
    return TrainConfig(
        **({"steps": 3, "batch_size": 8, "precision": "fp32", "warmup": 1, "augment": augmentation} | fields)
    )


@settings(max_examples=60)
@given(SIDE, SIDE, SIDE, SIDE, st.integers(0, 2**32 - 1), st.tuples(*[st.floats(0.3, 0.7)] * 2))
def test_a_painted_point_is_where_its_annotation_is(
    height: int, width: int, tall: int, wide: int, seed: int, point: tuple[float, float]
) -> None:
    """Through an odd, letterboxed frame of another shape than the camera's."""
    rng, where = np.random.default_rng(seed), np.array([point])
    matrix = homography(Augmentation(**GEOMETRY), width / height, rng)
    (moved,) = move_points(where, matrix)
    if not ((moved > 0.1) & (moved < 0.9)).all():  # part of the blob would be outside
        return
    left, top, inner_width, inner_height = content = fitted(height, width, (tall, wide))
    image = torch.tensor(resize(painted(height, width, where[0]), (tall, wide)) / 255).float().movedim(-1, 0)
    matrices, inside = torch.from_numpy(matrix).float()[None, None], torch.tensor(content)[None, None]
    warped = warp(image[None, None], matrices, inside)[0, 0]
    np.testing.assert_allclose(centre(warped), (left, top) + moved * (inner_width, inner_height), atol=1.0)


def test_the_bars_around_an_image_stay_black_and_its_edge_is_repeated() -> None:
    frame = torch.tensor(resize(np.full((20, 40, 3), 200, np.uint8), 32)).movedim(-1, 0)[None, None].float()
    content = torch.tensor(fitted(20, 40, 32))[None, None]
    for seed in range(8):
        matrix = homography(Augmentation(**GEOMETRY | {"shift": 0.5}), 2.0, np.random.default_rng(seed))
        torch.testing.assert_close(warp(frame, torch.from_numpy(matrix).float()[None, None], content), frame)


@given(st.integers(0, 2**32 - 1), st.floats(0.2, 5.0))
def test_without_strength_nothing_moves(seed: int, aspect: float) -> None:
    matrix = homography(Augmentation(), aspect, np.random.default_rng(seed))
    np.testing.assert_allclose(matrix, np.eye(3), atol=1e-12)
    points = np.random.default_rng(seed).uniform(0.01, 0.99, (5, 2))
    np.testing.assert_allclose(move_points(points, matrix), points)


@given(st.integers(0, 2**32 - 1), st.floats(0.3, 5.0), st.floats(1, 45))
def test_a_rotation_is_one_of_the_scene(seed: int, aspect: float, degrees: float) -> None:
    """Distances in pixels stay, whatever the aspect ratio."""
    matrix = homography(Augmentation(rotation=degrees), aspect, np.random.default_rng(seed))
    points = np.array([[0.5, 0.5], [0.5 + 0.1 / aspect, 0.5], [0.5, 0.6]])  # a tenth of the height apart
    moved = move_points(points, matrix) * (aspect, 1)
    np.testing.assert_allclose(np.linalg.norm(moved[1:] - moved[0], axis=1), 0.1)


def test_points_that_leave_the_image_are_not_in_it_and_unknown_ones_stay_unknown() -> None:
    right = np.array([[1, 0, 0.3], [0, 1, 0], [0, 0, 1]])
    points = np.array([[0.2, 0.5], [0.8, 0.5], [-0.2, 0.5], [-1.0, -1.0], [np.nan, np.nan]])
    expected = [[0.5, 0.5], [-1, -1], [-1, -1], [-1, -1], [np.nan, np.nan]]
    # The third was beyond the edge: that it would now be inside shows nowhere, for the edge is repeated.
    np.testing.assert_allclose(move_points(points, right), expected)


def test_tokens_say_where_the_pixels_went(make_model: Models) -> None:
    """From examples to the augmented batch: tokens, features of points and pixels agree in both cameras."""
    model = make_model(points=2)
    (batch,) = micro_batches(model.processor, mixture(demonstrations()), plan(GEOMETRY | BOTH), 0, ALONE)
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.processor.mean, model.processor.std))
    seen = augment(model.processor.pixels(batch.images), batch, batch.seed, Augmentation(**GEOMETRY | BOTH))
    tokens = {token: value for value, token in enumerate(model.processor.points)}
    different = set()
    for row in range(8):
        said = [tokens[i] for i in batch.labels[row].tolist() if i in tokens]
        assert len(said) == 4
        different.add(tuple(said))
        for camera, told in enumerate(np.reshape(said, (2, 2))):
            left, top, width, height = batch.content[row, camera].tolist()
            where = (left, top) + (told + 0.5) / 100 * (width, height)
            np.testing.assert_allclose(centre(seen[row, camera] * std + mean), where, atol=1.0)
            np.testing.assert_allclose((batch.points[row, camera, :2].numpy() + 1) * 50, told + 0.5, atol=1e-3)
    assert len(different) == 8


def test_points_are_of_the_images_in_their_order(make_model: Models) -> None:
    """A store may list the cameras in another order than the robot does."""
    model, (example,) = make_model(points=2), demonstrations(count=1)
    assert example.points is not None
    turned = replace(
        example, images=dict(reversed(example.images.items())), points=np.ascontiguousarray(example.points[::-1])
    )
    (ours,), (first,) = move([example], model.processor, Augmentation(**GEOMETRY | BOTH), [(0, 1)])
    (theirs,), (second,) = move([turned], model.processor, Augmentation(**GEOMETRY | BOTH), [(0, 1)])
    assert torch.equal(first, second) and ours.points is not None and theirs.points is not None
    np.testing.assert_array_equal(ours.points, theirs.points[::-1])


def test_questions_keep_their_geometry_and_change_light(make_model: Models) -> None:
    model = make_model(points=2)
    examples = demonstrations()
    asked = Rows([replace(examples[0], turns=(("where is it?", "40 60"),))])  # its answer holds a coordinate
    settings = plan(EVERYTHING | BOTH)
    (batch,) = micro_batches(model.processor, mixture(questions(), asked, examples), settings, 0, ALONE)
    kept = torch.tensor([s != "2" for s in batch.source])
    moved = (batch.warp != torch.eye(3)).flatten(1).any(1)
    assert kept.sum() > 4 and torch.equal(moved, ~kept)
    pixels = model.processor.pixels(batch.images)
    assert not torch.equal(augment(pixels, batch, batch.seed, settings.augmentation)[kept], pixels[kept])


def test_cameras_are_drawn_apart_and_wrist_cameras_stay_by_default(make_model: Models) -> None:
    model = make_model(points=2)
    by_default, both, wrist = (
        micro_batches(model.processor, mixture(demonstrations()), plan(GEOMETRY | cameras), 0, ALONE)[0].warp
        for cameras in ({}, BOTH, {"cameras": ["wrist"]})
    )
    unmoved = torch.eye(3).expand(8, 3, 3)
    assert torch.equal(by_default[:, 1], unmoved) and torch.equal(wrist[:, 0], unmoved)
    # What one camera draws does not depend on the others.
    assert torch.equal(by_default[:, 0], both[:, 0]) and torch.equal(wrist[:, 1], both[:, 1])
    assert not torch.isclose(both[:, 0], both[:, 1], atol=1e-4).flatten(1).all(1).any()
    assert list(report(Augmentation(**GEOMETRY), model.processor)) == [
        'geometric augmentation of toy: front; unchanged: wrist ("wrist" in the name); rows with questions keep '
        "their geometry"
    ]
    assert list(report(Augmentation(brightness=0.1), model.processor)) == []


@pytest.mark.parametrize("head", ["parallel", "flow", "l1"])
def test_a_row_is_augmented_alike_whatever_is_beside_it(make_model: Models, head: str) -> None:
    """In another split of the batch, on other ranks, and again."""
    model = make_model(points=2, head=head)
    settings = EVERYTHING | BOTH
    gradients, pixels = [], {}
    for accumulate in (1, 4):
        told = plan(settings, accumulate=accumulate)
        model.zero_grad()
        micro = micro_batches(model.processor, mixture(demonstrations(), questions()), told, 1, ALONE)
        for batch in micro:
            seen = augment(model.processor.pixels(batch.images), batch, batch.seed, told.augmentation)
            for seed, row, mask in zip(batch.seed.tolist(), seen, batch.image_mask, strict=True):
                torch.testing.assert_close(pixels.setdefault(seed, row[mask]), row[mask])
        backward(TrainState(model, told, Path(), ["0", "1"], ALONE, Progress(1)), micro)
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert len(pixels) == 8
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5)
    sources = mixture(demonstrations(), questions())
    (whole,) = micro_batches(model.processor, sources, plan(settings), 1, ALONE)
    for rank in range(2):
        (own,) = micro_batches(
            model.processor, sources, plan(settings), 1, DistributedContext(torch.device("cpu"), rank, 2)
        )
        assert torch.equal(own.warp[:4], whole.warp[rank::2, : own.warp.shape[1]])


def test_one_number_is_light_contrast_and_saturation_as_before(make_model: Models) -> None:
    model = make_model()
    (batch,) = micro_batches(model.processor, mixture(demonstrations(), questions()), plan(0.2), 0, ALONE)
    assert torch.equal(batch.warp, torch.eye(3).expand_as(batch.warp))
    drawn = np.stack([np.random.default_rng(s).random((2, 3), np.float32) for s in batch.seed.tolist()])
    pixels = model.processor.pixels(batch.images)
    expected = change_light(pixels, torch.from_numpy(2 * drawn - 1) * 0.2)
    assert torch.equal(augment(pixels, batch, batch.seed, plan(0.2).augmentation), expected)


def test_each_strength_changes_pixels_as_it_says(make_model: Models) -> None:
    model = make_model()
    (batch,) = micro_batches(model.processor, mixture(demonstrations()), plan(0), 0, ALONE)
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.normal(size=(8, 2, 3, 32, 32)).astype(np.float32))
    assert torch.equal(augment(pixels, batch, batch.seed, Augmentation()), pixels)

    def seen(**strengths: float) -> torch.Tensor:
        return augment(pixels, batch, batch.seed, Augmentation(**strengths))

    noise = (seen(noise=0.3) - pixels).std((2, 3, 4))
    assert noise.min() > 0 and noise.max() < 0.31 and noise.std() > 0.02
    assert (seen(blur=2.0).std((2, 3, 4)) < pixels.std((2, 3, 4))).all()
    hidden = (seen(cutout=0.5) != pixels).any(2).float().mean((2, 3))
    assert 0 < hidden.max() <= 0.25 and len(hidden.unique()) > 8


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        ({"hue": 0.1}, "has no hue"),
        ({"rotation": "much"}, "plan.augment.rotation must be a number"),
        ({"rotation": -5}, "plan.augment.rotation"),
        ({"crop": 1.0}, "plan.augment.crop must be below 1"),
        ({"shift": float("nan")}, "plan.augment.shift"),
        ({"cameras": "front"}, r"list of names: \[front\]"),
        (-0.1, "plan.augment.brightness"),
    ],
)
def test_options_that_mean_nothing_are_named(augmentation: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(augmentation)


def test_cameras_and_points_that_do_not_fit_stop_a_run_before_it_begins(make_model: Models, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="top; the robots have front, wrist"):
        train(make_model(), mixture(demonstrations()), plan(GEOMETRY | {"cameras": ["top"]}), tmp_path / "run")
    with pytest.raises(InputError, match="3 points for 2 cameras"):
        named = GEOMETRY | {"cameras": ["front"]}
        train(make_model(points=3), mixture(demonstrations()), plan(named), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_robot_whose_points_are_of_unknown_cameras_keeps_its_geometry_and_that_is_reported(
    make_model: Models,
) -> None:
    processor = make_model(points=3).processor
    augmentation = Augmentation.of(GEOMETRY)
    check(augmentation, processor)
    assert list(report(augmentation, processor)) == [
        "geometric augmentation of toy: no camera; its 3 points cannot be assigned to cameras"
    ]
    rows = demonstrations()
    moved, warps = move(rows, processor, augmentation, [(i,) for i in range(len(rows))])
    assert all(a is b for a, b in zip(moved, rows, strict=True)) and not any(len(maps) for maps in warps)

"""Rows of tokens, and the tensors that they become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from vla.common.scene_objects import POINT_SCALE
from vla.common.stored_image import Image, StoredImage
from vla.models.preprocessing.view import View, draw_all

IGNORE = -100
"""The label of a position that has no loss."""

Frames = Callable[[tuple[int, ...]], UInt8[np.ndarray, "_b _k _h _w 3"]]
"""Gives memory for the images of a batch, of this shape; what it holds is overwritten."""


def own_frames(shape: tuple[int, ...]) -> UInt8[np.ndarray, "_b _k _h _w 3"]:
    """Memory of its own."""
    return np.empty(shape, np.uint8)


@dataclass(frozen=True)
class Shown:
    """An image, and what is shown of it."""

    image: Image | StoredImage
    view: View


@dataclass(frozen=True)
class Batch:
    """Tensors of b rows with up to k frames of images and l tokens. `labels` is IGNORE where there is no loss.

    `robot` is a row's place among the processor's robots, -1 for a question. `state` is normalised, `points` are what
    `point_features` makes of them; zero where a row has none, and beyond what its robot has.
    `segments` is 0 for what a whole row sees, and n for its n-th independent turn, which sees 0 and itself.
    `actions` are a row's chunk, normalised, of which the first `prefix_length` are under way already; `continuous_mask` are those of
    its numbers that a head learns as numbers; `prompt_length` is how many tokens come before it.
    `content` is the part of each frame that is not bars around it: left, top, width, height [pixels]. `warp` is the
    homography by which training moves it, on fractions of its width and height (`vla.training.geometry`). `tiling` says
    which of its row's images a frame is of, and in how many rows and columns of frames that was cut.
    `seed` is what each row's random numbers in training come from, -1 for those of torch's own generator.
    """

    images: UInt8[Tensor, "b k h w 3"]
    image_mask: Bool[Tensor, "b k"]
    content: Int[Tensor, "b k 4"]
    tiling: Int[Tensor, "b k 3"]
    warp: Float[Tensor, "b k 3 3"]
    input_ids: Int[Tensor, "b l"]
    attention_mask: Bool[Tensor, "b l"]
    labels: Int[Tensor, "b l"]
    segments: Int[Tensor, "b l"]
    robot: Int[Tensor, "b"]
    state: Float[Tensor, "b s"]
    points: Float[Tensor, "b p 3"]
    actions: Float[Tensor, "b t a"]
    continuous_mask: Bool[Tensor, "b t a"]
    prefix_length: Int[Tensor, "b"]
    prompt_length: Int[Tensor, "b"]
    seed: Int[Tensor, "b"]
    source: tuple[str, ...]

    def rows(self, chosen: Int[Tensor, "c"]) -> Batch:
        return self.each(lambda tensor: tensor[chosen], tuple(self.source[i] for i in chosen.tolist()))

    def to(self, device: torch.device) -> Batch:
        """Copied while the device computes, where the batch lies in pinned memory."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True), self.source)

    def each(self, change: Callable[[Tensor], Tensor], source: tuple[str, ...]) -> Batch:
        tensors = {f.name: change(getattr(self, f.name)) for f in fields(self) if f.name != "source"}
        return Batch(**tensors, source=source)


@dataclass
class Row:
    """A row under construction; `segment` is the turn that tokens are added to, `bare` a row without images."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    segment: int = 0
    bare: bool = False
    robot: int = -1
    state: Float[np.ndarray, "s"] | None = None
    points: Float[np.ndarray, "p 2"] | None = None
    actions: Float[np.ndarray, "t a"] | None = None
    continuous_mask: Bool[np.ndarray, "t"] | None = None
    prefix_length: int = 0
    prompt_length: int = 0
    seed: int = -1

    def add(self, ids: Sequence[int], labels: Sequence[int] | None = None, shared: bool = False) -> None:
        self.ids += ids
        self.labels += [IGNORE] * len(ids) if labels is None else labels
        self.segments += [0 if shared else self.segment] * len(ids)


def collate(
    rows: Sequence[Row],
    images: Sequence[Sequence[Shown]],
    source: tuple[str, ...],
    *,
    pad: int,
    least: tuple[int, int],
    state_width: int,
    points_width: int,
    chunk: tuple[int, int],
    left: bool,
    segmented: bool,
    frames: Frames,
) -> Batch:
    """The rows as tensors, padded on the right or on the `left`; `chunk` is the shape of the largest. Frames have the
    height and width [pixels] of the largest, or of `least` where there is none.

    A row of one turn is all of one segment, unless the backbone must be told (`segmented`). The images lie in what
    `frames` gives."""
    length = max(len(row.ids) for row in rows)
    input_ids = np.full((len(rows), length), pad)
    labels = np.full((len(rows), length), IGNORE)
    attention = np.zeros((len(rows), length), bool)
    segments = np.zeros((len(rows), length), np.int64)
    state = np.zeros((len(rows), state_width), np.float32)
    points = np.full((len(rows), points_width, 2), -1, np.float32)
    actions = np.zeros((len(rows), *chunk), np.float32)
    continuous_mask = np.zeros((len(rows), *chunk), bool)
    for i, row in enumerate(rows):
        span = slice(length - len(row.ids), length) if left else slice(0, len(row.ids))
        input_ids[i, span], labels[i, span], attention[i, span] = row.ids, row.labels, True
        segments[i, span] = row.segments if segmented or row.segment > 1 else 0
        if row.state is not None:
            state[i, : len(row.state)] = row.state
        if row.points is not None:
            points[i, : len(row.points)] = row.points
        if row.actions is not None:
            steps, width = row.actions.shape
            actions[i, :steps, :width] = row.actions
            if row.continuous_mask is not None:
                continuous_mask[i, :steps, :width] = row.continuous_mask[:, None]
    pixels, image_mask, content, tiling = _collate_images(images, least, frames)
    return Batch(
        images=torch.from_numpy(pixels),
        image_mask=torch.from_numpy(image_mask),
        content=torch.from_numpy(content),
        tiling=torch.from_numpy(tiling),
        warp=torch.eye(3).repeat(*image_mask.shape, 1, 1),
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(attention),
        labels=torch.from_numpy(labels),
        segments=torch.from_numpy(segments),
        robot=torch.tensor([row.robot for row in rows]),
        state=torch.from_numpy(state),
        points=point_features(torch.from_numpy(points)),
        actions=torch.from_numpy(actions),
        continuous_mask=torch.from_numpy(continuous_mask),
        prefix_length=torch.tensor([row.prefix_length for row in rows]),
        prompt_length=torch.tensor([row.prompt_length for row in rows]),
        seed=torch.tensor([row.seed for row in rows]),
        source=source,
    )


def _collate_images(
    images: Sequence[Sequence[Shown]], least: tuple[int, int], frames: Frames
) -> tuple[
    UInt8[np.ndarray, "b k h w 3"],
    Bool[np.ndarray, "b k"],
    Int[np.ndarray, "b k 4"],
    Int[np.ndarray, "b k 3"],
]:
    """The frames of each row's images, which of them there are, what of each is not bars, and how it was cut."""
    pieces = [[piece for shown in row for piece in shown.view.pieces] for row in images]
    most = max(1, max(map(len, pieces)))
    height, width = (max((piece.frame[i] for row in pieces for piece in row), default=least[i]) for i in (0, 1))
    pixels = frames((len(images), most, height, width, 3))
    mask, content = np.zeros((len(images), most), bool), np.zeros((len(images), most, 4), np.int64)
    tiling = np.zeros((len(images), most, 3), np.int64)
    drawn = []
    for i, row in enumerate(images):
        j = 0
        for number, shown in enumerate(row):
            span = slice(j, j := j + len(shown.view.pieces))
            mask[i, span], content[i, span] = True, [piece.content for piece in shown.view.pieces]
            tiling[i, span] = number, *shown.view.grid
            drawn.append(list(pixels[i, span]))
    pixels[~mask] = 0
    for own, of_row in zip(pieces, pixels, strict=True):
        for piece, frame in zip(own, of_row, strict=False):
            if piece.frame != (height, width):
                frame[piece.frame[0] :], frame[:, piece.frame[1] :] = 0, 0
    shown_all = [shown for row in images for shown in row]
    draw_all([shown.image for shown in shown_all], [shown.view for shown in shown_all], drawn)
    return pixels, mask, content, tiling


def point_features(percent: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b 3"]:
    """What the model is told of points that it said in whole percent: (x, y in [-1, 1], 1); zeros for none (-1)."""
    seen = (percent >= 0).all(-1, keepdim=True)
    return torch.cat([(percent + 0.5) * (2 / POINT_SCALE) - 1, torch.ones_like(percent[..., :1])], -1) * seen

"""Rows of tokens, and their collation into a batch of tensors."""

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
"""The label of a position without loss."""

Frames = Callable[[tuple[int, ...]], UInt8[np.ndarray, "_b _k _h _w 3"]]
"""Returns an array of the given shape for the images of a batch; its content is overwritten."""


def allocate_frames(shape: tuple[int, ...]) -> UInt8[np.ndarray, "_b _k _h _w 3"]:
    """A new array for the images of a batch."""
    return np.empty(shape, np.uint8)


@dataclass(frozen=True)
class Shown:
    """An image, and how it is cut into frames."""

    image: Image | StoredImage
    view: View


@dataclass(frozen=True)
class Batch:
    """Tensors of b rows with up to k frames of images and l tokens.

    Attributes:
        content: left, top, width and height [pixels] of each frame's image, without the bars around it.
        tiling: index of the frame's image in its row, and the number of rows and columns of frames that the image was
            cut into.
        warp: homography of the frame's augmentation, on fractions of width and height (`vla.training.geometry`).
        labels: token ids, or IGNORE where there is no loss.
        segments: 0 for tokens shared by the row, n for its n-th independent turn, which attends to 0 and itself.
        robot: index of the row's robot in the processor, -1 for a question.
        state: the normalised state; zero where a row has none, and in components that its robot does not have.
        points: `point_features` of the row's points; zero where there are none.
        actions: the normalised chunk.
        continuous_mask: values of the chunk with a continuous loss.
        prefix_length: length of the action prefix in the chunk.
        prompt_length: number of tokens before the chunk.
        seed: seed of the row's random numbers in training; -1 for torch's global generator.
        source: source of each row.
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

    def rows(self, indices: Int[Tensor, "c"]) -> Batch:
        """The batch of the selected rows."""
        return self.map_tensors(lambda tensor: tensor[indices], tuple(self.source[i] for i in indices.tolist()))

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`, copied asynchronously from pinned memory."""
        return self.map_tensors(lambda tensor: tensor.to(device, non_blocking=True), self.source)

    def map_tensors(self, function: Callable[[Tensor], Tensor], source: tuple[str, ...]) -> Batch:
        """The batch with `function` applied to every tensor, and a new `source`."""
        tensors = {f.name: function(getattr(self, f.name)) for f in fields(self) if f.name != "source"}
        return Batch(**tensors, source=source)


@dataclass
class Row:
    """A row under construction.

    Attributes:
        attended: whether each token is attended to.
        segment: the turn to which tokens are added.
        bare: whether the row has no images.
    """

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    attended: list[bool] = field(default_factory=list)
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
        """Appends tokens, without loss where `labels` is None; `shared` ones belong to segment 0."""
        self.ids += ids
        self.labels += [IGNORE] * len(ids) if labels is None else labels
        self.segments += [0 if shared else self.segment] * len(ids)
        self.attended += [True] * len(ids)

    def add_unattended(self, count: int, token: int) -> None:
        """Appends copies of a shared token that nothing attends to."""
        self.add([token] * count, shared=True)
        self.attended[len(self.ids) - count :] = [False] * count


def collate(
    rows: Sequence[Row],
    images: Sequence[Sequence[Shown]],
    source: tuple[str, ...],
    *,
    pad: int,
    min_frame: tuple[int, int],
    state_width: int,
    points_width: int,
    chunk: tuple[int, int],
    left: bool,
    segmented: bool,
    frames: Frames,
) -> Batch:
    """Collates rows into tensors; frames are padded to the largest height and width.

    Args:
        pad: id of the padding token.
        min_frame: height and width [pixels] of the frames where there are no images.
        chunk: horizon and largest action dimension.
        left: pad on the left, else on the right.
        segmented: keep the segment of rows with a single turn, for backbones that need it.
        frames: allocates the images.
    """
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
        input_ids[i, span], labels[i, span], attention[i, span] = row.ids, row.labels, row.attended
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
    pixels, image_mask, content, tiling = _collate_images(images, min_frame, frames)
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
    images: Sequence[Sequence[Shown]], min_frame: tuple[int, int], frames: Frames
) -> tuple[
    UInt8[np.ndarray, "b k h w 3"],
    Bool[np.ndarray, "b k"],
    Int[np.ndarray, "b k 4"],
    Int[np.ndarray, "b k 3"],
]:
    """The frames of each row's images, with `image_mask`, `content` and `tiling` of `Batch`."""
    pieces = [[piece for shown in row for piece in shown.view.pieces] for row in images]
    max_frames = max(1, max(map(len, pieces)))
    height, width = (max((piece.frame[i] for row in pieces for piece in row), default=min_frame[i]) for i in (0, 1))
    pixels = frames((len(images), max_frames, height, width, 3))
    mask, content = np.zeros((len(images), max_frames), bool), np.zeros((len(images), max_frames, 4), np.int64)
    tiling = np.zeros((len(images), max_frames, 3), np.int64)
    drawn = []
    for i, row in enumerate(images):
        j = 0
        for number, shown in enumerate(row):
            span = slice(j, j := j + len(shown.view.pieces))
            mask[i, span], content[i, span] = True, [piece.content for piece in shown.view.pieces]
            tiling[i, span] = number, *shown.view.grid
            drawn.append(list(pixels[i, span]))
    pixels[~mask] = 0
    for row_pieces, row_frames in zip(pieces, pixels, strict=True):
        for piece, frame in zip(row_pieces, row_frames, strict=False):
            if piece.frame != (height, width):
                frame[piece.frame[0] :], frame[:, piece.frame[1] :] = 0, 0
    shown_all = [shown for row in images for shown in row]
    draw_all([shown.image for shown in shown_all], [shown.view for shown in shown_all], drawn)
    return pixels, mask, content, tiling


def point_features(percent: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b 3"]:
    """Conditioning features of predicted points in percent: (x, y in [-1, 1], 1), or zeros for a missing point (-1)."""
    present = (percent >= 0).all(-1, keepdim=True)
    return torch.cat([(percent + 0.5) * (2 / POINT_SCALE) - 1, torch.ones_like(percent[..., :1])], -1) * present

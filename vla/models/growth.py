"""Grows the weights of a policy for robots that join, for further points, and for another horizon.

Existing robots keep their indices and weights. New columns of the weights of conditioning values are 0, so that the
chunks of existing robots do not change before training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vla.errors import InputError
from vla.models.processor import Processor
from vla.models.robot_spec import RobotSpec
from vla.models.vla import VLA

POSITIONS = "action_position_embedding.weight"
CONDITIONED = ("conditioning_mlp.0.weight", "continuous_head.state.weight", "continuous_head.state.0.weight")
"""Weights with a column per conditioning value."""
PER_COMPONENT = ("continuous_head.action_in_proj.", "continuous_head.action_out_proj.")
"""Beginnings of the names of weights whose rows or columns are those of action components."""


def grown(base: VLA, robots: Sequence[RobotSpec], head: Mapping[str, Any]) -> VLA:
    """The policy `base` for `robots`, with its weights.

    Args:
        base: the policy.
        robots: its robots, of which some may be changed, and then others.
        head: the settings of its action head, of which those of training may be changed.

    Raises:
        InputError: the action head has weights that depend on the robots in an unknown way.
    """
    before = base.processor
    assert before.head is not None
    processor = before.with_robots(robots, head, before.state_encoding, before.tiles)
    if _layout(before) == _layout(processor) and head == before.head.settings:
        base.processor = processor
        return base
    model, weights = VLA(base.backbone, processor, base.smoothing), base.state_dict()
    columns, positions = _conditioning_columns(before, processor), _positions(before, processor)
    for name, tensor in model.state_dict().items():
        if name.startswith("backbone."):  # the same module
            continue
        old = weights.get(name)
        if name == POSITIONS and old is not None:
            _copy(tensor, old, positions)
        elif name in CONDITIONED and old is not None:
            tensor.zero_()
            _copy(tensor.T, old.T, columns)
        elif name.startswith(PER_COMPONENT) and old is not None:
            tensor[tuple(map(slice, old.shape))] = old
        elif old is not None and old.shape == tensor.shape:
            tensor.copy_(old)
        else:
            raise InputError(
                f"the action head {before.head.settings['kind']} cannot take other robots or another horizon: {name} "
                "depends on them"
            )
    return model.eval()


def _layout(processor: Processor) -> Any:
    """What the shapes and the order of the weights depend on."""
    robots = processor.robots
    points = [(robot.points, len(robot.embodiment.cameras)) for robot in robots]
    return [robot.action_dim for robot in robots], points, processor.state_width, robots[0].horizon


def _copy(tensor: Tensor, old: Tensor, sources: Mapping[int, int]) -> None:
    """Copies rows of `old` by their new index."""
    if sources:
        tensor[list(sources)] = old[list(sources.values())]


def _conditioning_columns(before: Processor, after: Processor) -> dict[int, int]:
    """The column of each conditioning value in `VLA._conditioning`, after and before."""
    sources = {i: i for i in range(before.state_width)}
    for new, old in _point_columns(before, after).items():
        for i in range(3):
            sources[after.state_width + 3 * new + i] = before.state_width + 3 * old + i
    ends = [processor.state_width + 3 * processor.points_width for processor in (after, before)]
    embodiments = [len(processor.robots) if len(processor.robots) > 1 else 0 for processor in (after, before)]
    for i in range(embodiments[1]):
        sources[ends[0] + i] = ends[1] + i
    assert before.head is not None
    if before.head.conditions_on_prefix:
        # Of each step: its actions, and whether it is in the prefix.
        starts = [end + count for end, count in zip(ends, embodiments, strict=True)]
        widths = [max(robot.action_dim for robot in processor.robots) for processor in (after, before)]
        for step in range(min(after.robots[0].horizon, before.robots[0].horizon)):
            first, old_first = (start + step * (width + 1) for start, width in zip(starts, widths, strict=True))
            sources |= {first + i: old_first + i for i in range(widths[1])}
            sources[first + widths[0]] = old_first + widths[1]
    return sources


def _point_columns(before: Processor, after: Processor) -> dict[int, int]:
    """The index of each point, after and before. Of robots that share an index, one that has not changed decides."""
    pairs = list(zip(before.robots, after.robots, strict=False))
    sources: dict[int, int] = {}
    for old, new in sorted(pairs, key=lambda pair: pair[0].points != pair[1].points):
        cameras = old.embodiment.cameras
        if (old.points, cameras) == (new.points, new.embodiment.cameras):
            sources |= {i: i for i in range(old.points)} | sources
            continue
        objects, new_objects = (r.points // max(1, len(r.embodiment.cameras)) for r in (old, new))
        for i, camera in enumerate(cameras):
            at = new.embodiment.cameras.index(camera)
            for j in range(objects):
                sources.setdefault(at * new_objects + j, i * objects + j)
    return sources


def _positions(before: Processor, after: Processor) -> dict[int, int]:
    """The position of each action token of the robots of `before`, after and before."""
    head, new_head = before.head, after.head
    assert head is not None and new_head is not None
    sources: dict[int, int] = {}
    order = torch.arange(max(head.num_action_positions, new_head.num_action_positions) + 1)[None]
    for old, new in _pairs(head, new_head, order, sorted({robot.action_dim for robot in before.robots})):
        if old < head.num_action_positions and new < new_head.num_action_positions:
            sources.setdefault(new, old)
    return sources


def _pairs(head: Any, new_head: Any, order: Tensor, widths: Sequence[int]) -> Iterator[tuple[int, int]]:
    for width in widths:
        rows = [one.action_positions(order, torch.tensor([[width]]))[0].tolist() for one in (head, new_head)]
        yield from zip(*rows, strict=True)

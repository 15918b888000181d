"""The model that a training starts from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from vla.models.backbones.backbone import Backbone
from vla.models.backbones.nano import nano, train_tokenizer
from vla.models.backbones.pretrained import open_backbone
from vla.models.continued import Ranges, continued
from vla.models.processor import Processor
from vla.models.robot_spec import RobotSpec
from vla.models.vla import VLA, smooth_token_embeddings


def build(
    backbone: str | Mapping[str, Any],
    robots: Sequence[RobotSpec],
    texts: Iterable[str],
    head: Mapping[str, Any],
    state_encoding: str = "numbers",
    tiles: int | None = None,
    ranges: Ranges | None = None,
) -> VLA:
    """A model on the named backbone (see `train`); its tokenizer is the backbone's, or for "scratch" trained on
    `texts`.

    A checkpoint that drives robots already goes on with all its weights, if the data are of these and its head is of
    that kind, with ranges as `ranges` says. Raises InputError that says in what they differ.
    """
    body: Backbone
    ranges = ranges or Ranges()
    if backbone == "scratch":
        body, processor = nano(train_tokenizer(sorted(set(texts))))
        smooth_token_embeddings(body, torch.tensor(processor.points))
    elif folder := checkpoint_folder(backbone):
        base = VLA.load(folder)
        body, processor = base.backbone, base.processor
        if processor.robots and robots:
            return continued(str(backbone), base, robots, head, ranges)
    else:
        body, processor = open_backbone(backbone)
    ranges.check_unused(str(backbone))
    return with_head(body, processor, robots, head, state_encoding, tiles)


def with_head(
    body: Backbone,
    processor: Processor,
    robots: Sequence[RobotSpec],
    head: Mapping[str, Any],
    state_encoding: str = "numbers",
    tiles: int | None = None,
) -> VLA:
    """A new policy for these robots on a backbone, whose `processor` drives none yet."""
    if not processor.has_points:  # it has no words for them
        robots = _without_points(robots)
    return VLA(body, processor.with_robots(robots, head, state_encoding, tiles))


def checkpoint_folder(backbone: str | Mapping[str, Any]) -> Path | None:
    """The folder of a checkpoint of ours, or of the best one of a run."""
    if not isinstance(backbone, str):
        return None
    folder = Path(str(files("vla") / "assets" / "nano")) if backbone == "nano" else Path(backbone)
    folder = folder / "best" if (folder / "best").is_dir() else folder
    return folder if (folder / "processor.json").is_file() else None


def _without_points(robots: Sequence[RobotSpec]) -> list[RobotSpec]:
    return [replace(robot, points=0) for robot in robots]

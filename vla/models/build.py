"""Builds the model from which training starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from vla.errors import InputError
from vla.models.backbones.backbone import Backbone
from vla.models.backbones.nano import nano, train_tokenizer
from vla.models.backbones.pretrained import open_backbone
from vla.models.continued import CompleteHead, Ranges, continued
from vla.models.processor import Processor
from vla.models.released.registry import is_policy, open_policy
from vla.models.robot_spec import RobotSpec
from vla.models.vla import VLA, smooth_token_embeddings


def build(
    backbone: str | Mapping[str, Any],
    robots: Sequence[RobotSpec],
    texts: Iterable[str],
    head: Mapping[str, Any],
    state_encoding: str | None = None,
    tiles: int | None = None,
    ranges: Ranges | None = None,
    complete: CompleteHead | None = None,
) -> VLA:
    """Builds a model on a backbone (see `train`).

    A checkpoint with robots is continued with all its weights (`vla.models.continued`).

    Args:
        backbone: as in `train`.
        robots: the robots of the data.
        texts: texts on which the tokenizer of the backbone "scratch" is trained.
        head: settings of the action head.
        state_encoding, tiles: as in `Processor`; None: those of the policy that is continued, or the default.
        ranges: normalisation ranges for a checkpoint that is continued.
        complete: completes the settings of a new head for its robots; None: they are complete.

    Raises:
        InputError: where the data or the head do not match the checkpoint; the message names the difference.
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
            _check_inputs(str(backbone), processor, state_encoding=state_encoding, tiles=tiles)
            return continued(str(backbone), base, robots, head, ranges, complete)
    elif isinstance(backbone, str) and is_policy(backbone):
        policy = open_policy(backbone)
        if robots and policy.head["kind"] == head["kind"]:
            if state_encoding is not None or tiles is not None:
                raise InputError(f"{backbone} has its own inputs: leave out state_encoding and tiles")
            ranges.check_unused(backbone)
            own = "tokenizer" in policy.head and not head.get("tokenizer")
            return policy.model(robots, complete(head, robots) if complete and not own else head)
        body, processor = policy.backbone, policy.processor.without_policy()
        if policy_tokens := body.vocab_size - processor.text_vocab:
            body.add_token_embeddings(-policy_tokens)
        print(f"{backbone}: its vision-language model alone, without its head {policy.head['kind']}")
    else:
        body, processor = open_backbone(backbone)
    ranges.check_unused(str(backbone))
    head = complete(head, robots) if complete else head
    return with_head(body, processor, robots, head, state_encoding or "numbers", tiles)


def with_head(
    body: Backbone,
    processor: Processor,
    robots: Sequence[RobotSpec],
    head: Mapping[str, Any],
    state_encoding: str = "numbers",
    tiles: int | None = None,
) -> VLA:
    """A new policy for these robots on a backbone whose `processor` has none yet."""
    if not processor.has_points:  # the vocabulary has no point tokens
        robots = _without_points(robots)
    return VLA(body, processor.with_robots(robots, head, state_encoding, tiles))


def checkpoint_folder(backbone: str | Mapping[str, Any]) -> Path | None:
    """The folder of a checkpoint of this project, or of the best one of a run; None for anything else."""
    if not isinstance(backbone, str):
        return None
    folder = Path(str(files("vla") / "assets" / "nano")) if backbone == "nano" else Path(backbone)
    folder = folder / "best" if (folder / "best").is_dir() else folder
    return folder if (folder / "processor.json").is_file() else None


def _check_inputs(name: str, processor: Processor, **options: object) -> None:
    """Raises InputError for an option that is set and is not that of the processor of the policy `name`."""
    for option, value in options.items():
        if value not in (None, own := getattr(processor, option)):
            raise InputError(f"{option} is {own} in {name}, not {value}: leave it out")


def _without_points(robots: Sequence[RobotSpec]) -> list[RobotSpec]:
    return [replace(robot, points=0) for robot in robots]

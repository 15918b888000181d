"""The action head of a run: its kind, and settings that are computed from the training data."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vla.common.renamed_keys import HEAD, current_keys
from vla.errors import InputError
from vla.models.action_heads.build import check_head
from vla.models.action_heads.fast import FastHead, from_json, to_json
from vla.models.action_tokenizers.fast import FastTokenizer
from vla.models.processor import Processor
from vla.models.robot_spec import RobotSpec
from vla.training.demonstrations import Demonstrations
from vla.training.episode_numbers import EpisodeNumbers

DEFAULT = "parallel"
SAMPLE = 256
"""Number of action chunks of each store with which FAST tokens are checked."""
MAX_INACCURATE = 0.01
"""Largest share of chunks that FAST tokens of other robots may represent inaccurately."""


def chosen_head(head: str | Mapping[str, Any] | None, checkpoints: Sequence[Path]) -> str | Mapping[str, Any]:
    """The head of the options of `vla train`: by default the kind of the policy in `checkpoints`, then `DEFAULT`."""
    if isinstance(head, str) or (head and head.get("kind")):
        return head
    for checkpoint in checkpoints:
        try:
            values = json.loads((checkpoint / "processor.json").read_text())
        except ValueError:  # loading the checkpoint reports it
            continue
        if values.get("robots") or values.get("robot"):
            return {**(head or {}), "kind": values.get("head", {}).get("kind", DEFAULT)}
    return {**(head or {}), "kind": DEFAULT}


def head_settings(
    head: str | Mapping[str, Any], demonstrations: Sequence[EpisodeNumbers], robots: Sequence[RobotSpec]
) -> dict[str, Any]:
    """Completes the settings of an action head for `vla.models.action_heads.build.build_head`.

    Args:
        head: The name of the head, or its name (`kind`) and options. For FAST, `tokenizer` is the folder of a trained
            tokenizer (`vla train-tokenizer`); without it a tokenizer is trained on the demonstrations.
        demonstrations: The stores to train on.
        robots: The robots of the model.

    Raises:
        InputError: the head or the tokenizer does not exist.
    """
    settings: dict[str, Any] = {"kind": head} if isinstance(head, str) else current_keys(head, HEAD)
    check_head(settings.get("kind"))
    needs_fast = bool(settings.get("knowledge_insulation")) and settings.get("tokens", "fast") == "fast"
    if (settings["kind"] == "fast" or needs_fast) and robots:
        folder = settings.get("tokenizer")
        tokenizer = FastTokenizer.load(Path(folder)) if folder else _train_fast(demonstrations, robots)
        settings["tokenizer"] = to_json(tokenizer)
    return settings


def check_fast(processor: Processor, demonstrations: Sequence[Demonstrations], names: Collection[str]) -> None:
    """Raises InputError if the FAST tokens of a head do not represent the actions of the robots `names`.

    They were trained on other robots, coefficients outside their range are clipped, and a released policy's chunks are
    cut.
    """
    settings = processor.head.settings if processor.head is not None else {}
    if not settings.get("tokenizer"):
        return
    tokenizer = from_json(settings["tokenizer"])
    longest = processor.head.longest if isinstance(processor.head, FastHead) else None
    for source in demonstrations:
        if (name := source.store.embodiment.name) not in names:
            continue
        robot = processor.robot(name)
        chunks = [chunk for batch in source.chunks(robot, source.train_episodes[:SAMPLE]) for chunk in batch]
        chosen = chunks[:: -(-len(chunks) // SAMPLE)]
        bound = 1.001 * tokenizer.error_bound(robot.horizon)
        encoded = [tokenizer.encode(chunk)[:longest] for chunk in chosen]
        decoded = [tokenizer.decode(ids, *chunk.shape) for ids, chunk in zip(encoded, chosen, strict=True)]
        wrong = [
            found is None or bool(np.abs(found - chunk).max() > bound)
            for found, chunk in zip(decoded, chosen, strict=True)
        ]
        if np.mean(wrong) > MAX_INACCURATE:
            raise InputError(
                f"the checkpoint's FAST tokens do not represent {np.mean(wrong):.0%} of the action chunks of {name}: "
                "choose another head, or train all robots together from a vision-language model"
            )


def _train_fast(demonstrations: Sequence[EpisodeNumbers], robots: Sequence[RobotSpec]) -> FastTokenizer:
    by_name = {robot.name: robot for robot in robots}

    def chunks() -> Iterator[Float[np.ndarray, "_b _h _a"]]:
        for demonstration in demonstrations:
            yield from demonstration.chunks(by_name[demonstration.embodiment.name])

    return FastTokenizer.train(chunks)

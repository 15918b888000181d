"""Settings of an action head that are computed from the training data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vla.common.renamed_keys import HEAD, current_keys
from vla.models.action_heads.build import check_head
from vla.models.action_heads.fast import to_json
from vla.models.action_tokenizers.fast import FastTokenizer
from vla.models.robot_spec import RobotSpec
from vla.training.episode_numbers import EpisodeNumbers


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


def _train_fast(demonstrations: Sequence[EpisodeNumbers], robots: Sequence[RobotSpec]) -> FastTokenizer:
    by_name = {robot.name: robot for robot in robots}

    def chunks() -> Iterator[Float[np.ndarray, "_b _h _a"]]:
        for demonstration in demonstrations:
            yield from demonstration.chunks(by_name[demonstration.embodiment.name])

    return FastTokenizer.train(chunks)

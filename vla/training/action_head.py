"""What a head needs to know of the data before training starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vla.models.action_heads.build import check_head
from vla.models.action_heads.fast import to_json
from vla.models.action_tokenizers.fast import FastTokenizer
from vla.models.robot_spec import RobotSpec
from vla.training.demonstrations import Demonstrations


def head_settings(
    head: str | Mapping[str, Any], demonstrations: Sequence[Demonstrations], robots: Sequence[RobotSpec]
) -> dict[str, Any]:
    """The settings that `vla.models.action_heads.build.build_head` takes, of a head's name or of its name and options.

    FAST's `tokenizer` is the folder of one (`vla train-tokenizer`); without one it is trained on the demonstrations.
    Raises InputError when there is no such head or no such tokenizer.
    """
    settings: dict[str, Any] = {"kind": head} if isinstance(head, str) else dict(head)
    check_head(settings.get("kind"))
    insulated = bool(settings.get("knowledge_insulation")) and settings.get("tokens", "fast") == "fast"
    if (settings["kind"] == "fast" or insulated) and robots:
        folder = settings.get("tokenizer")
        tokenizer = FastTokenizer.load(Path(folder)) if folder else _trained(demonstrations, robots)
        settings["tokenizer"] = to_json(tokenizer)
    return settings


def _trained(demonstrations: Sequence[Demonstrations], robots: Sequence[RobotSpec]) -> FastTokenizer:
    by_name = {robot.name: robot for robot in robots}

    def chunks() -> Iterator[Float[np.ndarray, "_b _h _a"]]:
        for one in demonstrations:
            yield from one.chunks(by_name[one.store.embodiment.name], one.train_episodes)

    return FastTokenizer.train(chunks)

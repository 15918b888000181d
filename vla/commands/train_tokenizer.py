"""`vla train-tokenizer`: trains a FAST tokenizer on the actions of stores."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from vla.common.atomic import atomic_replace
from vla.errors import InputError
from vla.training.horizon import horizon_steps

if TYPE_CHECKING:
    from vla.models.action_tokenizers.fast import FastTokenizer
    from vla.models.robot_spec import RobotSpec
    from vla.training.demonstrations import Demonstrations

REPORTED_EPISODES = 50


def check_options(out: str, horizon: int | float | str | None, scale: float) -> None:
    """Raises InputError for an invalid value, and if the folder `out` exists; imports nothing slow."""
    if Path(out).exists():
        raise InputError(f"{out} exists already: name another folder, out=…, or remove it")
    if scale <= 0:
        raise InputError(f"scale must be greater than 0, not {scale}")
    horizon_steps(horizon, (), "fast")


def train_tokenizer(
    *, data: str | Mapping[str, str], out: str, horizon: int | float | str | None, vocab: int, scale: float
) -> FastTokenizer:
    """Trains a tokenizer on every action chunk of the training episodes, normalised as in `vla train`.

    Prints the number of tokens and the error on held-out episodes.

    Args:
        data: Store of demonstrations, or several by name.
        out: Folder for the tokenizer; must not exist.
        horizon: Length of a chunk, in steps or as text in seconds.
        vocab: Size of the vocabulary.
        scale: Factor of the frequency coefficients before rounding.

    Raises:
        InputError: `out` exists, a store cannot be used, or the actions need more tokens than `vocab`. Nothing is
            written.
    """
    check_options(out, horizon, scale)
    from vla.models.action_tokenizers.fast import FastTokenizer
    from vla.training.demonstrations import Demonstrations, robot_specs

    folder = Path(out)
    demonstrations = [Demonstrations.open(path) for path in ([data] if isinstance(data, str) else data.values())]
    steps = horizon_steps(horizon, [d.store.embodiment.control_hz for d in demonstrations], "fast")
    robots = {robot.name: robot for robot in robot_specs(demonstrations, steps)}
    sources = [(d, robots[d.store.embodiment.name]) for d in demonstrations]

    def chunks() -> Iterator[Float[np.ndarray, "_b h _a"]]:
        for dataset, robot in sources:
            yield from dataset.chunks(robot, dataset.train_episodes)

    tokenizer = FastTokenizer.train(chunks, vocab, scale)
    with atomic_replace(folder) as partial:
        partial.mkdir()
        tokenizer.save(partial)
    print(f"{folder}: {tokenizer.vocab_size} tokens")
    for dataset, robot in sources:
        _report(tokenizer, dataset, robot)
    stores = f" {shlex.quote(f'data={data}')}" if isinstance(data, str) else ""
    print(f"vla train head=fast {shlex.quote(f'head.tokenizer={folder}')}{stores}")
    return tokenizer


def _report(tokenizer: FastTokenizer, dataset: Demonstrations, robot: RobotSpec) -> None:
    """Prints the number of tokens and the error of held-out chunks, or of training chunks if none is held out."""
    held_out = dataset.heldout_episodes
    episodes = (held_out if len(held_out) else dataset.train_episodes)[:REPORTED_EPISODES]
    lengths, errors = [], []
    for chunk in (chunk for block in dataset.chunks(robot, episodes) for chunk in block):
        tokens = tokenizer.encode(chunk)
        decoded = tokenizer.decode(tokens, *chunk.shape)
        lengths.append(len(tokens))
        errors.append(np.inf if decoded is None else np.abs(decoded - chunk).max())
    count, mean = robot.action_tokens, float(np.mean(lengths))
    print(
        f"{dataset.store.path}: {mean:.1f} tokens for the {count} values of a chunk ({count / mean:.1f} times fewer); "
        f"largest error {np.max(errors):.3f}, where the range of the data is -1 to 1"
    )

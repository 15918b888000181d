"""`vla train-tokenizer`: a FAST tokenizer of the actions in stores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from vla.common.atomic import atomic_replace
from vla.errors import InputError
from vla.models.action_tokenizers.fast import FastTokenizer
from vla.models.robot_spec import RobotSpec
from vla.training.demonstrations import Demonstrations, robot_specs
from vla.training.horizon import horizon_steps

REPORTED_EPISODES = 50


def train_tokenizer(
    *, data: str | Mapping[str, str], out: str, horizon: int | float | str | None, vocab: int, scale: float
) -> FastTokenizer:
    """Trains on every chunk of the training episodes of `data`, normalised as `vla train` does; writes it to `out`.

    The held-out episodes then tell how well it does. Raises InputError, before anything is written, when `out` is
    there already, a store cannot be used, or the actions need more tokens than `vocab`.
    """
    folder = Path(out)
    if folder.exists():
        raise InputError(f"{folder} exists already: name another folder, out=…, or remove it")
    if scale <= 0:
        raise InputError(f"scale must be greater than 0, not {scale}")
    demonstrations = [Demonstrations.open(path) for path in ([data] if isinstance(data, str) else data.values())]
    steps = horizon_steps(horizon, [d.store.embodiment.control_hz for d in demonstrations], "fast")
    robots = {robot.name: robot for robot in robot_specs(demonstrations, steps)}
    sources = [(d, robots[d.store.embodiment.name]) for d in demonstrations]

    def chunks() -> Iterator[Float[np.ndarray, "_b h _a"]]:
        for one, robot in sources:
            yield from one.chunks(robot, one.train_episodes)

    tokenizer = FastTokenizer.train(chunks, vocab, scale)
    with atomic_replace(folder) as partial:
        partial.mkdir()
        tokenizer.save(partial)
    print(f"{folder}: {tokenizer.vocab_size} tokens")
    for one, robot in sources:
        _report(tokenizer, one, robot)
    return tokenizer


def _report(tokenizer: FastTokenizer, one: Demonstrations, robot: RobotSpec) -> None:
    """How many tokens and what error chunks have that it was not trained on; of a lone episode, that one's."""
    episodes = (one.heldout_episodes or one.train_episodes)[:REPORTED_EPISODES]
    lengths, errors = [], []
    for chunk in (chunk for some in one.chunks(robot, episodes) for chunk in some):
        tokens = tokenizer.encode(chunk)
        decoded = tokenizer.decode(tokens, *chunk.shape)
        lengths.append(len(tokens))
        errors.append(np.inf if decoded is None else np.abs(decoded - chunk).max())
    count, mean = robot.action_tokens, float(np.mean(lengths))
    print(
        f"{one.store.path}: {mean:.1f} tokens for the {count} values of a chunk ({count / mean:.1f} times fewer); "
        f"off by {np.max(errors):.3f} at most, where -1 to 1 is the range of the data"
    )

"""Statistics of the numbers in an episode store, read without decoding an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from vla.common.statistics import Statistics, check_finite
from vla.embodiment import Embodiment

Kind = Literal["state", "action"]


def statistics_of(
    episodes: Sequence[int], rows: Callable[[Kind, int], Float[np.ndarray, "_n c"]], body: Embodiment, where: str
) -> dict[Kind, Statistics]:
    """Statistics of state and action over the `episodes`. `rows` is called several times per episode.

    Raises InputError naming episode, step and component where a value is not finite.
    """

    def blocks(kind: Kind) -> Iterator[Float[np.ndarray, "_n c"]]:
        for index in episodes:
            values = rows(kind, index)
            check_finite(values, getattr(body, kind), f"{kind} of episode {index} of {where}")
            yield values

    return {"state": Statistics.over(lambda: blocks("state")), "action": Statistics.over(lambda: blocks("action"))}

"""Which evaluation's checkpoint to keep: robot skill must not be bought with forgotten language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def choose(evaluations: Sequence[Mapping[str, float]], margin: float) -> int:
    """Index of the lowest `action_error` among those whose `vqa` is within `margin` of the best.

    Either may be absent, when there is nothing of that kind to evaluate: then the other decides.
    """
    floor = max(e.get("vqa", 0.0) for e in evaluations) - margin
    able = [i for i, e in enumerate(evaluations) if e.get("vqa", 0.0) >= floor]
    return min(able, key=lambda i: (evaluations[i].get("action_error", 0.0), -evaluations[i].get("vqa", 0.0), -i))

"""Which evaluation's checkpoint to keep: robot skill must not be bought with forgotten language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def choose(evaluations: Sequence[Mapping[str, float]], margin: float, candidates: Sequence[int] | None = None) -> int:
    """Index of the lowest `action_error` among the candidates whose `vqa` is within `margin` of the best seen.

    The candidates (default: all) are those whose checkpoint still exists; where none is within the margin, all
    of them are compared. Either score may be absent, when there is nothing of that kind to evaluate: then the
    other decides.
    """
    floor = max(e.get("vqa", 0.0) for e in evaluations) - margin
    among = range(len(evaluations)) if candidates is None else candidates
    able = [i for i in among if evaluations[i].get("vqa", 0.0) >= floor] or among
    return min(able, key=lambda i: (evaluations[i].get("action_error", 0.0), -evaluations[i].get("vqa", 0.0), -i))

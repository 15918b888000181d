"""Which evaluation's checkpoint to keep: robot skill must not be bought with forgotten language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

UNITS = "error of "
"""What the error of an action component in its unit is called, before the component's name."""


def choose(
    evaluations: Sequence[Mapping[str, float]], margin: float, candidates: Sequence[int] | None = None
) -> int | None:
    """Index of the lowest `action_error` among the candidates whose `vqa` is within `margin` of the best seen.

    The candidates (default: all) are those whose checkpoint still exists; where none is within the margin, all
    of them are compared. Either score may be absent, when there is nothing of that kind to evaluate: then the
    other decides. One whose `retention` is below 0 (`vla.training.regression_gates`) is rejected: None where all are.
    """
    floor = max(e.get("vqa", 0.0) for e in evaluations) - margin
    among = range(len(evaluations)) if candidates is None else candidates
    among = [i for i in among if evaluations[i].get("retention", 0.0) >= 0]
    able = [i for i in among if evaluations[i].get("vqa", 0.0) >= floor] or among
    # Before action errors were shares of a range they were in the action's unit: those cannot be compared.
    shares = [_is_share(evaluations[i]) for i in able]
    able = [i for i in able if _is_share(evaluations[i])] if len(set(shares)) > 1 else able
    key = {i: (evaluations[i].get("action_error", 0.0), -evaluations[i].get("vqa", 0.0), -i) for i in able}
    return min(able, key=key.__getitem__, default=None)


def _is_share(evaluation: Mapping[str, float]) -> bool:
    return any(name.startswith(UNITS) for name in evaluation)

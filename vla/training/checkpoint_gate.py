"""Selects the best checkpoint: the lowest action error among those that retain their language scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

UNITS = "error of "
"""Prefix of the scores that are errors of action components in their units."""


def choose(
    evaluations: Sequence[Mapping[str, float]], margin: float, candidates: Sequence[int] | None = None
) -> int | None:
    """Index of the lowest `action_error` among the candidates whose `vqa` is within `margin` of the highest.

    Either score may be absent; then the other decides.

    Args:
        evaluations: The scores of all evaluations of the run.
        margin: The largest accepted drop of `vqa`. If no candidate is within it, all candidates are compared.
        candidates: Indices of the evaluations whose checkpoint still exists (default: all).

    Returns:
        The index, or None if the `retention` of every candidate is below 0 (`vla.training.regression_gates`).
    """
    floor = max(e.get("vqa", 0.0) for e in evaluations) - margin
    indices = range(len(evaluations)) if candidates is None else candidates
    indices = [i for i in indices if evaluations[i].get("retention", 0.0) >= 0]
    eligible = [i for i in indices if evaluations[i].get("vqa", 0.0) >= floor] or indices
    # Older runs have action errors in the action's unit, not as a share of a range: they cannot be compared.
    shares = [_is_share(evaluations[i]) for i in eligible]
    eligible = [i for i in eligible if _is_share(evaluations[i])] if len(set(shares)) > 1 else eligible
    key = {i: (evaluations[i].get("action_error", 0.0), -evaluations[i].get("vqa", 0.0), -i) for i in eligible}
    return min(eligible, key=key.__getitem__, default=None)


def _is_share(evaluation: Mapping[str, float]) -> bool:
    return any(name.startswith(UNITS) for name in evaluation)

"""The benchmark of heads, small: each is trained, rolled out and measured by the same program."""

from __future__ import annotations

import pytest

from vla.benchmarks import heads
from vla.models.action_heads.bins import BinsHead


@pytest.mark.slow  # four trainings, each with rollouts
def test_every_head_is_measured(pick_demonstrations: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "TIMED", 2)
    chosen = ("parallel", "bins", "l1", "flow head.knowledge_insulation=true head.tokens=bins")
    table = heads.bench_heads(pick_demonstrations, chosen, steps=1, batch_size=2, evaluations=1)
    assert [row["head"] for row in table.rows] == [
        "parallel",
        "bins",
        "l1",
        "flow, knowledge_insulation=true, tokens=bins",
    ]
    counts = {row["head"].split(",")[0]: (row["tokens"], row["passes"]) for row in table.rows}
    assert (counts["parallel"], counts["l1"], counts["flow"]) == ((36, 1), (36, 1), (0, 0))
    assert (
        counts["bins"][0] >= 36 > counts["bins"][1] >= 36 / BinsHead.draft_length
    )  # some guesses are read for nothing
    for row in table.rows:
        assert row["error rad"] > 0 and row["ms"] > 0
        assert 0 <= row["low"] <= row["success"] <= row["high"] <= 1

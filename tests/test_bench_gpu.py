"""Parts have processes and a time of their own; here without a GPU."""

from __future__ import annotations

import time

import pytest

from vla.benchmarks import gpu
from vla.benchmarks.gpu import CPU, GPU, Part, bench_gpu


@pytest.mark.slow  # each part is a process that imports all
def test_what_fails_and_what_is_cut_off_leaves_the_others_figures() -> None:
    table = "__import__('vla.common.result_table', fromlist=['Table']).Table([{'ms': 1.5}], [])"
    parts = [
        Part("bad", "1 / 0"),
        Part("slow", "__import__('time').sleep(600)", 0.5),
        Part("good", table),
    ]
    start = time.monotonic()
    found = bench_gpu(parts)
    assert time.monotonic() - start < 300
    states = {row["part"]: row["state"] for row in found.rows if "state" in row}
    assert states == {"bad": "failed: ZeroDivisionError: division by zero", "slow": "cut off", "good": "done"}
    assert [row["part"] for row in found.rows if row.get("ms") == 1.5] == ["good"]
    assert [(t.value, t.met) for t in found.targets[:1]] == [(1.0, False)]
    assert all(row["state"] == "cut off" for row in bench_gpu(parts, seconds=0.0).rows)
    assert found.to_text()


def test_the_parts_fit_and_name_benchmarks_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(gpu, "_run", lambda part, *_: (ran.append(part.name), ([], "done"))[1])
    assert bench_gpu().targets[0].met and ran == [part.name for part in CPU]
    assert bench_gpu(GPU).targets[0].met and ran[len(CPU) :] == [part.name for part in GPU]
    for part in (*CPU, *GPU):
        compile(part.call or "0", part.name, "eval")

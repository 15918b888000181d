"""`vla bench gpu`: all GPU checks in a limited time.

The parts are the tests marked `gpu`, and inference and training at the sizes of published models, with random weights.
Each part runs in a separate process within the remaining time. A part that fails or exceeds the time is reported as
such; the figures of the other parts remain.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla.common.device import accelerator
from vla.common.result_table import Table, Target

SECONDS = 460.0
"""The time limit of all parts [s]."""


@dataclass(frozen=True)
class Part:
    """A part.

    Attributes:
        name: The name in the table.
        call: An expression that returns its table, with modules of vla.benchmarks; empty for the tests.
        most: Its time limit [s].
    """

    name: str
    call: str = ""
    most: float = SECONDS


GPU = (
    Part("tests", most=120),
    *(
        Part(f"inference {names[0]}", f"inference.bench_inference({names!r}, calls=20, others={others})", 90)
        for names, others in (
            (["nano"], False),
            (["smolvla", "smolvla-weights"], True),
            (["pi0"], True),
            (["openvla"], False),
        )
    ),
    Part("train 0.5 B", "train.bench_train(train_shapes.REAL[:1], ('images',), episodes=8, steps=5, turns=3)", 150),
    Part("train 3 B", "train.bench_train(train_shapes.REAL[1:], ('images',), episodes=8, steps=5, turns=3)", 200),
)
CPU = (
    Part("inference nano", "inference.bench_inference(['nano'], calls=3, others=False)", 60),
    Part("inference smolvla tiny", "inference.bench_inference(['smolvla tiny'], calls=3, others=False)", 60),
)
"""The parts without a GPU, which check only that they run."""


def bench_gpu(parts: Sequence[Part] | None = None, seconds: float = SECONDS) -> Table:
    """Runs the parts; returns their rows with the name and the time of each part."""
    parts = parts or (GPU if accelerator().type == "cuda" else CPU)
    start, rows = time.monotonic(), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory(prefix="vla-bench-") as folder:
        for part in parts:
            part_start = time.monotonic()
            remaining = min(part.most, seconds - (part_start - start))
            found, state = _run(part, remaining, Path(folder) / "table.json")
            timing = {"part": part.name, "state": state, "seconds": time.monotonic() - part_start}
            rows += [timing, *({"part": part.name} | row for row in found)]
    done = sum(row.get("state") == "done" for row in rows)
    finished = Target("parts that finished", float(done), float(len(parts)))
    return Table(rows, [finished, Target("seconds", time.monotonic() - start, seconds + 20, at_most=True)])


def _run(part: Part, seconds: float, file: Path) -> tuple[list[dict[str, Any]], str]:
    """The rows of a part, and its state: "done", "cut off", or "failed" with the last line of its output."""
    file.unlink(missing_ok=True)
    if seconds <= 0:
        return [], "cut off"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"]
    if part.call:
        code = (
            "import json\nfrom vla.benchmarks import inference, train, train_shapes\n"
            f"table = {part.call}\n"
            f"open({str(file)!r}, 'w').write(json.dumps(table.to_dict()['rows']))"
        )
        command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return [], "cut off"
    if done.returncode:
        last_line = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
        return [], f"failed: {last_line}"
    return (json.loads(file.read_text()) if part.call else []), "done"

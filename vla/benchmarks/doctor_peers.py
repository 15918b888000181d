"""`lerobot-doctor` and `lerobot-lint` on the episodes of `vla bench doctor`, exported as a LeRobotDataset.

Each is run by the interpreter in an environment variable, of an environment with the tool (CONTRIBUTING.md).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vla.datasets.formats.lerobot_v3_writer import LeRobotWriter
from vla.errors import InputError
from vla.types import Episode

PYTHONS = {"lerobot-doctor": "LEROBOT_DOCTOR_PYTHON", "lerobot-lint": "LEROBOT_LINT_PYTHON"}
TIMEOUT = 3600.0
"""The time limit for one dataset [s]."""
Complaints = dict[int, set[str]]
"""The kinds of complaints about each episode."""

LEROBOT_DOCTOR = """
import json, re, sys
from lerobot_doctor.dataset_loader import load_dataset
from lerobot_doctor.runner import Severity, run_checks
data = load_dataset(sys.argv[1])
episodes, found = data.episodes_data, []
def run(checks):
    for result in run_checks(data, checks=checks).results:
        found.extend(m.message for m in result.messages if m.severity != Severity.PASS)
run(["videos", "anomalies"])
# It names no more than five episodes of a kind: it is given five at a time.
for start in range(0, len(episodes), 5):
    data.episodes_data = episodes[start : start + 5]
    run(["temporal", "actions", "per_episode"])
print(json.dumps(found))
"""


def exported(episodes: Sequence[Episode], folder: Path) -> Path:
    """Writes the episodes as a LeRobotDataset with video, with the times of capture as timestamps."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = LeRobotWriter(folder, episodes[0].embodiment, {}, use_videos=True)
    for episode in episodes:
        writer.append(replace(episode, points=None, chunks=None))
    writer.finish()
    writer.publish()
    times = iter([episode.time - episode.time[0] for episode in episodes])
    for file in sorted((folder / "data").rglob("*.parquet")):
        table = pq.read_table(file)
        count = len(np.unique(table["episode_index"].to_numpy()))
        values = np.concatenate([next(times) for _ in range(count)])
        column = table.schema.get_field_index("timestamp")
        field = table.schema.field(column)
        pq.write_table(table.set_column(column, field, pa.array(values, field.type)), file)
    return folder


def complaints(tool: str, dataset: Path) -> Complaints:
    """The complaints of a tool about each episode. Raises InputError if it fails."""
    python = os.environ[PYTHONS[tool]]
    with tempfile.TemporaryDirectory(prefix="vla-bench-") as folder:
        report = Path(folder) / "report.json"
        commands = {
            "lerobot-doctor": [python, "-c", LEROBOT_DOCTOR, str(dataset)],
            "lerobot-lint": [
                python, "-c", "from lerobot_lint.cli import app; app()", "check", str(dataset), "--json", str(report),
            ],
        }  # fmt: skip
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        ended = subprocess.run(
            commands[tool], capture_output=True, text=True, timeout=TIMEOUT, env=environment, check=False
        )
        readers: dict[str, Callable[[], Complaints]] = {
            "lerobot-doctor": lambda: read_doctor(json.loads(ended.stdout)),
            "lerobot-lint": lambda: read_lint(json.loads(report.read_text())),
        }
        try:
            return readers[tool]()
        except (OSError, ValueError) as error:
            last = (ended.stderr.strip().splitlines() or [str(error)])[-1]
            raise InputError(f"{tool}, run by {python} ({PYTHONS[tool]}), gave no report: {last}") from error


def read_doctor(messages: Sequence[str]) -> Complaints:
    """Kinds of messages by episode; messages that differ only in numbers are one kind."""
    found: Complaints = {}
    for message in messages:
        if named := re.search(r"[Ee]pisode (\d+)", message):
            for reason in re.sub(r"[\d.,\[\]]+", "#", message).split(";"):
                found.setdefault(int(named[1]), set()).add(reason.strip())
    return found


def read_lint(report: dict[str, list[dict[str, object]]]) -> Complaints:
    """Checks by episode, without findings about the dataset as a whole."""
    found: Complaints = {}
    for finding in report["findings"]:
        if isinstance(finding["episode"], int):
            found.setdefault(finding["episode"], set()).add(f"{finding['check']} {finding['joint']}")
    return found

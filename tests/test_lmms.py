"""lmms-eval's own command asks our models the questions of one of its tasks."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_hosted import Server, completion, server

__all__ = ["server"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ANSWERS = ["yes", "no", "no"]
TASK = """
include: {pope}
task: pope_local
dataset_path: {data}
dataset_kwargs: {{}}
test_split: train
"""
MAKE = """
import sys
from datasets import Dataset, Features, Image, Value
text = Value("string")
features = Features({"question_id": text, "question": text, "answer": text, "image": Image()})
rows = {"question_id": [], "question": [], "answer": [], "image": []}
for i, answer in enumerate(sys.argv[1:]):
    for column, value in zip(rows.values(), (str(i), "Is there a cube?", answer, "red.png")):
        column.append(value)
Dataset.from_dict(rows, features).to_parquet("data/train.parquet")
"""
"""What lmms-eval's environment has writes the questions, as a hub's repository holds them."""
WHERE = "from lmms_eval import tasks; print(tasks.__path__[0])"


@pytest.fixture
def python() -> str:
    found = os.environ.get("LMMS_EVAL_PYTHON")
    if not found or not Path(found).exists():
        pytest.skip("LMMS_EVAL_PYTHON names no interpreter of an environment with lmms-eval and this package")
    return found


def evaluate(python: str, folder: Path, policy: str) -> dict[str, Any]:
    """The scores of POPE's rules on three local questions."""
    Image.new("RGB", (64, 48), (200, 0, 0)).save(folder / "red.png")
    subprocess.run([python, "-c", MAKE, *ANSWERS], cwd=folder, check=True, capture_output=True)
    tasks = subprocess.run([python, "-c", WHERE], capture_output=True, text=True, check=True).stdout.split()[-1]
    (folder / "tasks").mkdir()
    yaml = TASK.format(pope=Path(tasks) / "pope" / "pope.yaml", data=folder / "data")
    (folder / "tasks" / "pope_local.yaml").write_text(yaml)
    command = ["-m", "lmms_eval", "--model", "vla", "--model_args", f"policy={policy}", "--tasks", "pope_local"]
    more = ["--include_path", str(folder / "tasks"), "--output_path", str(folder / "out")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "home")}
    run = subprocess.run(
        [python, *command, *more], cwd=folder, env=os.environ | offline, capture_output=True, text=True, timeout=500
    )
    assert run.returncode == 0 and "Error during" not in run.stdout + run.stderr, (run.stdout + run.stderr)[-3000:]
    (results,) = (folder / "out").rglob("*_results.json")
    scores: dict[str, Any] = json.loads(results.read_text())["results"]["pope_local"]
    return {name.removesuffix(",none"): value for name, value in scores.items()}


def test_a_backbone_is_asked(python: str, tmp_path: Path) -> None:
    assert 0 <= evaluate(python, tmp_path, "nano")["pope_accuracy"] <= 1


def test_what_is_answered_is_scored(python: str, tmp_path: Path, server: Server) -> None:
    server.replies = [completion("Yes")]
    scores = evaluate(python, tmp_path, f"hosted:gpt-4o@http://127.0.0.1:{server.server_port}/v1")
    assert scores["pope_accuracy"] == pytest.approx(1 / 3) and scores["pope_yes_ratio"] == pytest.approx(1 / 3)
    assert len(server.seen) == len(ANSWERS)
    for _, asked in server.seen:
        text, image = json.dumps(asked), json.dumps("data:image/")[1:-1]
        assert "Is there a cube?" in text and "single word or phrase" in text and image in text

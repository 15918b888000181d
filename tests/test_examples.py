"""Every example runs as a user runs it, at tiny sizes; the notebook is saved with its results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vla

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "first_policy.ipynb"
FEW = ("--episodes", "4", "--steps", "2", "--batch-size", "4")
LONG = pytest.mark.timeout(900)
"""Of examples that train: on a machine with other work their imports alone take minutes."""
TINY = 'OUT = Path("out")\nEPISODES, STEPS, BATCH_SIZE, SEEDS = 4, 2, 4, range(1000, 1001)'


def run(*command: str | Path, folder: Path) -> str:
    """The output of a command that succeeds, with the package and the examples of this checkout."""
    # One thread: beside other tests, several threads of a process wait for each other.
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{EXAMPLES}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def example(name: str, *arguments: str | Path, folder: Path) -> str:
    return run(sys.executable, EXAMPLES / f"{name}.py", *arguments, folder=folder)


def notebook() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(NOTEBOOK.read_text())
    return loaded


def code_cells(of: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in of["cells"] if cell["cell_type"] == "code"]


def pictures(of: dict[str, Any]) -> int:
    return sum("image/png" in output.get("data", {}) for cell in code_cells(of) for output in cell["outputs"])


def test_a_store_is_recorded_and_looked_at(tmp_path: Path) -> None:
    said = example("load_and_look_at_a_store", "--out", "out", folder=tmp_path)
    assert "2 episodes" in said and "vla view out/pick.zarr" in said
    assert (tmp_path / "out/episode.png").stat().st_size > 10_000
    with vla.open_store(tmp_path / "out/pick.zarr") as store:
        assert [episode.success for episode in store] == [True, True]
    again = example("load_and_look_at_a_store", "--store", "out/pick.zarr", "--out", "out", folder=tmp_path)
    assert again == said


@pytest.mark.slow
@LONG
def test_a_policy_is_trained_and_served(tmp_path: Path) -> None:
    said = example("train_a_policy", *FEW, "--out", "out", folder=tmp_path)
    assert "held-out action error" in said and "6 actions, 0.1 s apart" in said
    answers = example("serve_and_ask", "--policy", "out/train", "--chunks", "2", folder=tmp_path)
    assert answers.count("6 actions, the first [") == 2


@LONG
def test_an_action_head_is_added(tmp_path: Path) -> None:
    assert "6 actions of 6 components" in example("add_an_action_head", *FEW, "--out", "out", folder=tmp_path)
    head = json.loads((tmp_path / "out/steps-head/best/processor.json").read_text())["head"]
    assert head == {"kind": "steps", "delta": 1.0}


def test_a_robot_is_added(tmp_path: Path) -> None:
    said = example("add_a_robot", "--seconds", "1.5", folder=tmp_path)
    assert said.startswith("done: ")
    moved = [float(part.split()[-1]) for part in said.splitlines()[-1].split(", ")]
    assert len(moved) == 2 and min(moved) > 0.3


def test_vla_deploy_runs_the_robot_by_its_class(tmp_path: Path) -> None:
    robot = "robot={_target_: add_a_robot.ToyArm, speed: 2}"
    options = ["policy=hold", robot, "instruction=wave", "seconds=0.5", "out=out"]
    assert "wave: done" in run(sys.executable, "-m", "vla", "deploy", *options, folder=tmp_path)
    with vla.open_store(tmp_path / "out/episodes.zarr") as store:
        assert store.embodiment.name == "toy-arm" and store[0].images["front"].shape[1:] == (48, 48, 3)


def test_a_task_is_added(tmp_path: Path) -> None:
    assert "the expert succeeds in 3 of 3 episodes" in example("add_a_task", "--episodes", "3", folder=tmp_path)


def test_two_policies_are_compared(tmp_path: Path) -> None:
    said = example("evaluate_and_compare", "--a", "hold", "--b", "expert", "--episodes", "2", folder=tmp_path)
    assert "expert minus hold: +1.00" in said and "alone succeeds in 2 of 2 pairs" in said
    assert "expert against hold: no significant difference" in said
    assert "noisy: success" in example("evaluate_and_compare", "--episodes", "1", folder=tmp_path)


@LONG
def test_a_released_backbone_is_fine_tuned(tmp_path: Path) -> None:
    said = example("fine_tune_a_released_backbone", *FEW, "--out", "out", folder=tmp_path)
    assert "6 actions of 6 components" in said
    config = json.loads((tmp_path / "out/fine-tuned/best/config.json").read_text())
    assert "paligemma" in json.dumps(config["backbone"])


def test_the_notebook_is_saved_with_its_results() -> None:
    cells = code_cells(notebook())
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert {output["name"] for output in outputs if output["output_type"] == "stream"} == {"stdout"}
    assert pictures(notebook()) >= 6 and NOTEBOOK.stat().st_size < 300_000


@pytest.mark.slow
@LONG
def test_the_notebook_runs(tmp_path: Path) -> None:
    tiny = notebook()
    (parameters,) = (cell for cell in code_cells(tiny) if "parameters" in cell["metadata"].get("tags", []))
    parameters["source"] = TINY
    for cell in code_cells(tiny):
        cell["outputs"] = []
    (tmp_path / "tiny.ipynb").write_text(json.dumps(tiny))
    run(Path(sys.executable).with_name("jupyter-execute"), "--inplace", "tiny.ipynb", folder=tmp_path)
    assert pictures(json.loads((tmp_path / "tiny.ipynb").read_text())) == pictures(notebook())


def test_the_readme_lists_every_example() -> None:
    listed = {
        line.split("(")[1].split(")")[0] for line in (EXAMPLES / "README.md").read_text().splitlines() if "](" in line
    }
    assert listed == {file.name for file in EXAMPLES.iterdir() if file.suffix in (".py", ".ipynb")}

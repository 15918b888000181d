from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vla import cli


def test_the_runs_of_a_sweep_are_jobs(tmp_path: Path) -> None:
    # In a process of its own: submitit starts a job before it makes the folder, and a large process is slow at that.
    launcher = ["hydra/launcher=submitit_local", "hydra.sweep.dir=jobs"]
    command = [sys.executable, "-m", "vla", "models", "-m", *launcher, "family=pixtral,nonsense"]
    done = subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 2 and "nonsense" in done.stderr  # what a job refuses, the command does
    logs = [file.read_text() for file in sorted(tmp_path.glob("jobs/.submitit/*/*_log.out"))]
    assert len(logs) == 2 and any("mistral" in log.lower() for log in logs)


def test_a_launcher_without_ranks_runs_the_jobs_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["models", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "hydra.sweep.dir=jobs"]
    assert cli.main([*command, "family=pixtral,molmo"]) == 0
    assert {folder.name for folder in tmp_path.glob("jobs/*") if folder.is_dir()} == {"0", "1"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-m", "hydra/launcher=nonsense"], "submitit_slurm"),
        (["-m", "hydra/launcher=submitit_slurm"], "srun"),
        (["hydra/launcher=submitit_local"], "add -m"),
    ],
)
def test_a_launcher_that_cannot_run_is_refused(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert cli.main(["models", *arguments]) == 2
    message = capsys.readouterr().err
    assert said in message and len(message.splitlines()) == 1

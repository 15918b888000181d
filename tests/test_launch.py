from __future__ import annotations

from pathlib import Path

import pytest

from vla.commands import cli


def test_the_runs_of_a_sweep_are_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["models", "-m", "hydra/launcher=submitit_local", "hydra.sweep.dir=jobs"]
    assert cli.main([*command, "family=pixtral,nonsense"]) == 2
    logs = [file.read_text() for file in sorted(tmp_path.glob("jobs/.submitit/*/*_log.out"))]
    assert len(logs) == 2 and "mistral" in logs[0].lower()
    assert "nonsense" in capsys.readouterr().err  # what a job refuses, the command does


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

"""`vla completion`: the scripts complete commands, options and paths."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vla.commands import cli
from vla.commands.table import COMMANDS


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["completion", shell]) == 0
    return capsys.readouterr().out


def completed(script: str, words: list[str], folder: Path) -> list[str]:
    """What bash offers for the last of the words."""
    listed = " ".join(f"'{word}'" for word in words)
    state = f"COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}"
    code = f'{script}\n{state}; _vla 2>/dev/null; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes_commands_options_and_paths(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bash = script("bash", capsys)
    (tmp_path / "outputs").mkdir()
    assert completed(bash, ["vla", "tra"], tmp_path) == ["train", "train-tokenizer"]
    assert {*COMMANDS, "--help"} <= {*completed(bash, ["vla", ""], tmp_path)}
    assert completed(bash, ["vla", "eval", "see"], tmp_path) == ["seeds="]
    assert completed(bash, ["vla", "data", "info", "out"], tmp_path) == ["out=", "outputs"]
    # Bash parts words at "=".
    assert completed(bash, ["vla", "eval", "policy", "=", "out"], tmp_path) == ["outputs"]
    assert completed(bash, ["vla", "eval", "policy", "="], tmp_path) == ["outputs"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_is_one_of_its_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    assert all(name in text for name in COMMANDS)
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)


def test_another_shell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "bsh"]) == 2
    assert "did you mean 'bash'?" in capsys.readouterr().err

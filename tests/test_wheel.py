"""What a user installs: the sdist builds, the wheel made from it holds every file and runs by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("vla", "envs", "policies", "datasets", "configs")
JUNK = shutil.ignore_patterns("__pycache__", "*.pyc")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the sdist built from a copy of the tree, with no network."""
    tree = tmp_path_factory.mktemp("tree")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=JUNK)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tree / "dist"), str(tree)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert len(list((tree / "dist").glob("*.tar.gz"))) == 1
    (path,) = (tree / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel's content, as `pip install --no-deps --target` leaves it."""
    target = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def run(installed: Path, *arguments: str) -> str:
    """The output of Python with the installed wheel in front of everything, away from the repository."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=installed, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    """Modules, configuration, assets and the marker of types; nothing under a top-level name of its own."""
    ours = set()
    for folder in FOLDERS:
        base = Path() if folder == "vla" else Path("vla")
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".pyc":
                ours.add(str(base / file.relative_to(ROOT)))
    held = set(zipfile.ZipFile(wheel).namelist())
    assert ours - held == set()
    assert {name.split("/")[0] for name in held if ".dist-info/" not in name} == {"vla"}
    assert any(name.endswith("licenses/LICENSE") for name in held)


def test_command_line_runs_from_the_wheel(installed: Path) -> None:
    assert "vla COMMAND" in run(installed, "-m", "vla.commands.cli", "--help")
    assert "episodes: 5" in run(installed, "-m", "vla.commands.cli", "record", "episodes=5", "--cfg")


def test_linked_folders_import_from_the_wheel(installed: Path) -> None:
    code = "import vla.envs, vla.policies.policy, vla.datasets.episodes as e; print(vla.envs.__file__, e.__file__)"
    files = run(installed, "-c", code).split()
    assert all(Path(file).is_relative_to(installed / "vla") for file in files)

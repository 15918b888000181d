"""The house: where code lives, what may import what, and what no file may hold."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("envs", "policies", "datasets", "configs")
MAX_LINES = 400
MAX_PARAMETERS = 12

# An address of a package registry, or a folder of one machine.
PRIVATE = re.compile(
    r"(extra-)?index-url|find-links|https?://\S*(pypi|simple/)|file:///"
    r"|(?<![\w.~$}-])/(root|work|opt|home/\w+|Users/\w+)/"
)


def modules() -> Iterator[tuple[str, Path]]:
    """(dotted name inside vla, file) of every module, each once."""
    for folder in ("vla", *LINKED):
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            if folder == "vla" and (len(parts) == 2 and parts[1] == "__init__" or parts[1] in LINKED):
                continue
            yield ".".join(parts[1:] if folder == "vla" else parts).removesuffix(".__init__"), file


def own_files() -> list[Path]:
    """The files git tracks, and new ones it does not ignore; links left out."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    files = (ROOT / line for line in listed.stdout.splitlines())
    return [file for file in files if file.is_file() and not file.is_symlink()]


@pytest.mark.parametrize("name", LINKED)
def test_folder_is_linked_into_the_package(name: str) -> None:
    assert os.readlink(ROOT / "vla" / name) == f"../{name}"


def test_datasets_of_hugging_face_is_not_hidden() -> None:
    assert not (ROOT / "datasets" / "__init__.py").exists()
    code = "import datasets; datasets.load_dataset; import vla.datasets.episodes"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_imports_point_down_and_have_no_cycles(tmp_path: Path) -> None:
    """The contracts of `tool.importlinter`, also for imports within functions."""
    package = tmp_path / "vla"
    shutil.copytree(ROOT / "vla", package, ignore=shutil.ignore_patterns("__pycache__"))
    # import-linter passes over folders without one; the repository's must have none (see the test above).
    for folder in (package / "datasets", package / "datasets" / "formats"):
        (folder / "__init__.py").touch()
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", str(ROOT / "pyproject.toml")]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, text=True, stdout=-1)
    assert done.returncode == 0, done.stdout


def test_no_module_has_the_name_of_a_dependency() -> None:
    names = {Requirement(line).name for line in requires("vla") or []}
    taken = {re.sub("-", "_", name) for name in names} | {"rerun", "hydra", "omegaconf", "PIL"}
    assert [module for module, _ in modules() if module.split(".")[-1] in taken] == []


def test_files_are_short() -> None:
    files = [*(file for _, file in modules()), *(ROOT / "tests").glob("*.py")]
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_functions_have_few_parameters() -> None:
    """Those of commands are their options."""
    found = {}
    for module, file in modules():
        functions = (n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.FunctionDef))
        for function in () if module.startswith("commands.") else functions:
            names = [a.arg for a in ast.walk(function.args) if isinstance(a, ast.arg) and a.arg not in ("self", "cls")]
            if len(names) > MAX_PARAMETERS:
                found[f"{module}.{function.name}"] = len(names)
    assert found == {}


def test_no_registry_and_no_path_of_one_machine_is_written_down() -> None:
    found = []
    for file in own_files():
        if file == Path(__file__).resolve():
            continue
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{file.relative_to(ROOT)}: {match.group()}" for match in PRIVATE.finditer(text)]
    assert found == []


def test_lock_holds_names_and_versions_only() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.+-]+( ; .+)?", line)] == []


def test_command_line_starts_without_heavy_imports() -> None:
    code = "import sys, vla.commands.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    heavy = {"torch", "transformers", "mujoco", "zarr", "rerun", "numpy", "hydra", "gymnasium", "matplotlib", "lerobot"}
    assert heavy.isdisjoint(loaded)

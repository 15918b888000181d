"""The house: where code lives, what may import what, and what no file may hold."""

from __future__ import annotations

import ast
import os
import re
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

# From the top down. A module imports from its own layer and from those below, never from above.
LAYERS = (
    ("arguments", "bench", "benchmark", "benchmarks", "checks", "cli", "commands", "compare", "conversion", "convert")
    + ("data", "datatools", "options")
    + ("demo", "deploy", "doctor", "lmms", "record", "scenes", "__main__", "launch", "models", "play", "probe", "push")
    + ("record_robot", "robot", "score", "serve", "so101_sim", "train_tokenizer"),
    ("contrastive", "control", "evaluation", "feetech", "preference", "probes", "scoring", "serving")
    + ("teleop", "training"),
    ("datasets", "envs", "policies", "recording"),
    ("actions", "batch", "chat", "chat_encoder", "heads", "hub", "images", "inference", "model", "normalize", "page")
    + ("processor", "action_targets", "rgb", "robot_spec", "robot_views", "shared_images", "statistics", "vlm"),
    (
        "accelerator",
        "action_space",
        "configs",
        "embodiment",
        "errors",
        "full_disk",
        "install",
        "kinematics",
        "points",
        "rendering",
        "rotations",
    )
    + ("scene", "start_region", "stored_image", "types", "wire", "words"),
)
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}

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


def imports(file: Path) -> Iterator[str]:
    """The modules of vla that a file imports anywhere, without the leading `vla.`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("vla.") for alias in node.names if alias.name.startswith("vla."))
        elif isinstance(node, ast.ImportFrom) and node.module == "vla":
            yield from (alias.name for alias in node.names if alias.name != "__version__")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vla."):
            yield str(node.module).removeprefix("vla.")


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


def test_imports_point_down() -> None:
    wrong = []
    for module, file in modules():
        top = module.split(".")[0]
        assert top in LEVEL, f"vla.{module}: name its layer in LAYERS"
        wrong += [
            f"vla.{module} imports vla.{target}"
            for target in imports(file)
            if LEVEL.get(target.split(".")[0], -1) < LEVEL[top]
        ]
    assert wrong == []


def test_no_module_has_the_name_of_a_dependency() -> None:
    names = {Requirement(line).name for line in requires("vla") or []}
    taken = {re.sub("-", "_", name) for name in names} | {"rerun", "hydra", "omegaconf", "PIL"}
    assert [module for module, _ in modules() if module.split(".")[-1] in taken] == []


def test_files_are_short() -> None:
    files = [*(file for _, file in modules()), *(ROOT / "tests").glob("*.py")]
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


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

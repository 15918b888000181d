"""Docstrings document the arguments and attributes that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECTION = re.compile(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)+)", re.MULTILINE)
ENTRY = re.compile(r"^    (?! )([\w, `*]+?):(?: |$)", re.MULTILINE)


def documented(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    section = SECTION.search(ast.get_docstring(node) or "")
    entries = ENTRY.findall(section[1]) if section else []
    names = {name.strip("`* ") for entry in entries for name in entry.split(",")}
    return {name for name in names if name.isidentifier()}


def present(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    """The arguments of a function; of a class its fields, attributes, and the arguments of its methods."""
    names = {inner.arg for inner in ast.walk(node) if isinstance(inner, ast.arg)}
    if isinstance(node, ast.ClassDef):
        names |= {f.target.id for f in node.body if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)}
        names |= {inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute)}
    return names


def test_documented_arguments_exist() -> None:
    stale = []
    for folder in ("vla", "datasets", "policies", "envs", "lerobot_policy_vla", "examples"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    stale += [f"{file.relative_to(ROOT)}: {node.name}: {n}" for n in documented(node) - present(node)]
    assert stale == []

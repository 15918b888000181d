"""MkDocs hooks: the command reference from the help texts, and a copy of the package for the API reference."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "build" / "docs" / "vla"
MARKER = "<!-- commands -->"


def on_startup(command: str, dirty: bool) -> None:
    """Copies the package. griffe skips folders without `__init__.py`, which datasets/ must not have.

    It runs before the configuration is read: mkdocstrings ignores search paths that do not exist then.
    """
    shutil.rmtree(PACKAGE, ignore_errors=True)
    shutil.copytree(ROOT / "vla", PACKAGE, ignore=shutil.ignore_patterns("__pycache__", "assets", "*.yaml"))
    for folder in (PACKAGE / "datasets", PACKAGE / "datasets" / "formats"):
        (folder / "__init__.py").touch()


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Inserts the help text of every command."""
    return markdown.replace(MARKER, command_reference()) if MARKER in markdown else markdown


def command_reference() -> str:
    """A section for each command of `vla`, with its help text."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from vla.commands import cli

    parts = ["## Overview", f"```text\n{cli.overview()}\n```"]
    for name, command in cli.COMMANDS.items():
        parts += [
            f"## {name}",
            f"{command.summary[0].upper()}{command.summary[1:]}.",
            f"```text\n{cli.help_of(name)}\n```",
        ]
    return "\n\n".join(parts)

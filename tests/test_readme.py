"""What the documents show can be typed: every `vla` command in them parses and composes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from vla.commands import cli, options

ROOT = Path(__file__).resolve().parents[1]


def commands() -> list[str]:
    """The `vla ...` lines of the code blocks in README.md and of the examples in `--help`."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    shown = [line for block in blocks for line in block.splitlines() if line.startswith("vla ")]
    return sorted({*shown, *(example for command in cli.COMMANDS.values() for example in command.examples)})


@pytest.mark.parametrize("line", commands())
def test_command_composes(line: str) -> None:
    _, name, *arguments = shlex.split(line, comments=True)
    overrides, flags = cli.parse(name, arguments)
    runs = options.sweep(name, overrides) if "multirun" in flags else [overrides]
    configs = [options.compose(name, run) for run in runs]
    options.check_outputs_differ(configs)
    assert len(configs) == len(runs) > 0


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text())
    assert [target for target in targets if "://" not in target and not (ROOT / target).exists()] == []


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    shown = {
        match
        for file in ("README.md", "CONTRIBUTING.md")
        for match in re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / file).read_text(), re.MULTILINE)
    }
    assert shown and all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in shown)

"""Converts the arguments of a command into overrides in Hydra's grammar.

| option              | value                                                                                         |
|---------------------|-----------------------------------------------------------------------------------------------|
| path (`PATHS`)      | literal text: spaces, quotes, brackets, commas, `=`, `#` and `$` are part of the path. With -m |
|                     | a value that Hydra's grammar accepts is parsed, so that a comma defines a sweep               |
| free text (`TEXTS`) | literal text; enclosing quotes are removed                                                    |
| any other           | Hydra's grammar                                                                               |

For every option, `null` means no value and `${KEY}` is the value of another option. Keys of a mapping may be quoted to
include special characters: `{"joint[0]": delta}`. A path option that accepts a list or a mapping of paths uses Hydra's
grammar when the value is in brackets.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from pathlib import Path

from vla.commands.table import COMMANDS
from vla.common.renamed_keys import current_override
from vla.errors import InputError

PATHS = (
    *("out", "policy", "data", "data.*", "vqa", "vqa.*", "path", "others", "src", "dst", "a", "b"),
    *(
        "json",
        "html",
        "save",
        "model",
        "kinematics.model",
        "predictions",
        "references",
        "key_file",
        "script",
        "joystick",
        "leader_port",
    ),
    *("leader_calibration_dir", "merge", "images", "log", "robot.port", "robot.calibration_dir", "head.tokenizer"),
    *("backbone", "backbone.vision", "backbone.language"),
    *("regression_gates.*.data", "*.files", "preference.images", "reward.images", "grpo.reward"),
)
"""Options of any command whose value is a path or contains one (`policy=lerobot:FOLDER`)."""
TEXTS = ("instruction", "leader_id", "robot.id", "repo", "prompt", "cameras.*", "embodiment", "host")
"""Options of any command whose value is free text; `Command.verbatim` adds those of a single command."""
LISTS = ("merge", "others", "*.files")
MAPPINGS = ("data", "vqa", "backbone")

# A Hydra override: KEY=VALUE, +KEY=VALUE, ++KEY=VALUE or ~KEY.
OVERRIDE = re.compile(r"(\+{0,2})([A-Za-z_][\w.@:/-]*)=|~[A-Za-z_][\w.@:/]*(=|\Z)")
QUOTED_KEY = re.compile(r"""(?<=[{,])(\s*)(["'])((?:(?!\2).)*)\2(?=\s*:)""")
"""A quoted key of a mapping; Hydra's grammar supports only backslash escapes in keys."""
INTERPOLATION = re.compile(r"(\\*)\$\{(?!\w[\w.:,/-]*\})")
"""`${` that does not start a reference to an option or a resolver, with the backslashes before it."""


def parse(name: str, arguments: Sequence[str]) -> tuple[list[str], frozenset[str]]:
    """Splits the arguments of a command into Hydra overrides and flags.

    Returns:
        The overrides, and those of the flags "help", "multirun" and "cfg" that are set.

    Raises:
        InputError: An argument cannot be parsed.
    """
    flags = {"-h": "help", "--help": "help", "-m": "multirun", "--multirun": "multirun", "--cfg": "cfg"}
    found = {flags[argument] for argument in arguments if argument in flags}
    overrides: list[str] = []
    others: list[str] = []
    rest = iter([argument for argument in arguments if argument not in flags])
    for argument in rest:
        if argument.startswith("--"):
            override = argument[2:] if "=" in argument else f"{argument[2:]}={next(rest, '')}"
            if override.endswith("="):
                raise InputError(f"{argument} needs a value; see `vla {name} --help`")
            overrides.append(_grammatical(name, override, "multirun" in found))
        elif argument.startswith("-"):
            raise InputError(f"unknown flag {argument}; `vla {name} --help` lists the options")
        elif (option := _next_positional(name, overrides)) and not _is_override(name, argument):
            if option.startswith("*"):
                others.append(quoted(argument))
            else:
                value = _current(name, f"{option}={argument}").partition("=")[2]
                overrides.append(f"{option}={quoted(value)}")
        elif OVERRIDE.match(argument):
            overrides.append(_grammatical(name, argument, "multirun" in found))
        else:
            raise InputError(f"cannot use {argument!r}: options are written KEY=VALUE; see `vla {name} --help`")
    if others:
        overrides.append(f"{COMMANDS[name].positional[-1][1:]}=[{','.join(others)}]")
    return overrides, frozenset(found)


def quoted(text: str) -> str:
    """Quotes text for Hydra's grammar.

    A backslash is doubled only before a quote, and `$` is escaped unless it starts a reference (`${KEY}`).
    """
    text = INTERPOLATION.sub(lambda m: m[1] * 2 + r"\${", text)
    escaped = re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + m[2].replace("'", r"\'"), text)
    return f"'{escaped}'"


def is_path(key: str) -> bool:
    """Whether the option with this dotted name is a path, or a list or a mapping of paths."""
    return any(fnmatchcase(key, pattern) for pattern in PATHS)


@cache
def keys_of(name: str) -> frozenset[str]:
    """The top-level options of a command, read from its file in configs/."""
    text = (files("vla.configs") / f"{name}.yaml").read_text()
    return frozenset(re.findall(r"^(?:  - )?(\w+):", text, re.MULTILINE)) - {"defaults"}


def _is_override(name: str, argument: str) -> bool:
    """Whether an argument is an override rather than a positional path that contains `=`."""
    match = OVERRIDE.match(argument)
    if not match or match[2] is None:
        return bool(match)
    key = re.split(r"[.@:/]", match[2])[0]
    known = bool(match[1]) or key in keys_of(name) or key == "hydra"
    return known or not ("/" in argument or Path(argument).exists())


def _next_positional(name: str, overrides: Sequence[str]) -> str | None:
    """The first positional option of a command that is not set yet."""
    assigned = {override.partition("=")[0] for override in overrides}
    return next((option for option in COMMANDS[name].positional if option not in assigned), None)


def _current(name: str, override: str) -> str:
    """The override with present names; prints a warning for earlier ones."""
    override, warning = current_override(name, override)
    if warning:
        print(f"vla {name}: {warning}: the earlier name will be removed", file=sys.stderr)
    return override


def _grammatical(name: str, override: str, multirun: bool) -> str:
    """The override in Hydra's grammar: the value of a path or of free text is quoted."""
    override = _current(name, override)
    key, _, value = override.partition("=")
    plain = key.lstrip("+")
    if value in ("null", "") or key.startswith("~"):
        return override
    if plain in COMMANDS[name].verbatim or any(fnmatchcase(plain, pattern) for pattern in TEXTS):
        is_quoted = re.fullmatch(r"""'[^'\\]*'|"[^"\\]*\"""", value)
        return override if is_quoted else f"{key}={quoted(value)}"
    if (name, plain) == ("data", "images"):  # a boolean here, a folder in other commands
        return override
    if not (is_path(plain) or (plain == "task" and ".yaml" in value)) or _is_collection(plain, value):
        return f"{key}={QUOTED_KEY.sub(_unquoted_key, value)}" if value.startswith("{") else override
    return override if multirun and _is_readable(override) else f"{key}={quoted(value)}"


def _unquoted_key(match: re.Match[str]) -> str:
    return match[1] + re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", match[3])


def _is_collection(key: str, value: str) -> bool:
    """Whether a value is a list or a mapping of paths and the option accepts one."""
    ends = value[0] + value[-1]
    kinds = (("[]", LISTS), ("{}", MAPPINGS))
    return any(ends == brackets and any(fnmatchcase(key, p) for p in patterns) for brackets, patterns in kinds)


def _is_readable(override: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True

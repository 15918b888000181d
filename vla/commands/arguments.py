"""From the arguments of a command, as they were typed, to overrides in Hydra's grammar.

| option                  | value                                                                                     |
|-------------------------|-------------------------------------------------------------------------------------------|
| a path (`PATHS`)        | as typed: spaces, quotes, brackets, commas, `=`, `#` and `$` are part of it; with -m       |
|                         | Hydra's grammar, where it can read the value, so that a comma is a sweep                   |
| free text (`TEXTS`)     | as typed; quotes around the whole are left out                                            |
| every other one         | Hydra's grammar                                                                           |

A mapping's keys may be quoted, for characters that have a meaning: `{"joint[0]": delta}`.

`null` is no value, and `${KEY}` the value of another option, in all of them. A path that may be a list or a mapping of
paths has Hydra's grammar where the value stands in brackets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from pathlib import Path

from vla.commands.table import COMMANDS
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
"""Options whose value is a path or holds one (`policy=lerobot:FOLDER`), in whatever command."""
TEXTS = ("instruction", "leader_id", "robot.id", "repo", "prompt", "cameras.*", "embodiment", "host")
"""Options whose value is free text, in whatever command; `Command.verbatim` names further ones of a command."""
LISTS = ("merge", "others", "*.files")
MAPPINGS = ("data", "vqa", "backbone")

# What Hydra calls an override: KEY=VALUE, +KEY=VALUE, ++KEY=VALUE or ~KEY.
OVERRIDE = re.compile(r"(\+{0,2})([A-Za-z_][\w.@:/-]*)=|~[A-Za-z_][\w.@:/]*(=|\Z)")
QUOTED_KEY = re.compile(r"""(?<=[{,])(\s*)(["'])((?:(?!\2).)*)\2(?=\s*:)""")
"""A key of a mapping in quotes, which Hydra's grammar has not: it has backslashes."""
INTERPOLATION = re.compile(r"(\\*)\$\{(?!\w[\w.:,/-]*\})")
"""`${` that opens no reference to an option or a resolver, behind its backslashes."""


def parse(name: str, arguments: Sequence[str]) -> tuple[list[str], frozenset[str]]:
    """Splits a command's arguments into Hydra overrides and the flags among help, multirun and cfg."""
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
            raise InputError(f"unknown flag {argument}; `vla {name} --help` lists what there is")
        elif (free := _free_positional(name, overrides)) and not _is_override(name, argument):
            if free.startswith("*"):
                others.append(quoted(argument))
            else:
                overrides.append(f"{free}={quoted(argument)}")
        elif OVERRIDE.match(argument):
            overrides.append(_grammatical(name, argument, "multirun" in found))
        else:
            raise InputError(f"cannot use {argument!r}: options are written KEY=VALUE; see `vla {name} --help`")
    if others:
        overrides.append(f"{COMMANDS[name].positional[-1][1:]}=[{','.join(others)}]")
    return overrides, frozenset(found)


def quoted(text: str) -> str:
    """Text as Hydra's grammar quotes it: a backslash is doubled only where a quote follows. `$` is itself, except in a
    reference (`${KEY}`)."""
    text = INTERPOLATION.sub(lambda m: m[1] * 2 + r"\${", text)
    escaped = re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + m[2].replace("'", r"\'"), text)
    return f"'{escaped}'"


def is_path(key: str) -> bool:
    """Whether the option of that dotted name is a path, or a list or a mapping of paths."""
    return any(fnmatchcase(key, pattern) for pattern in PATHS)


@cache
def keys_of(name: str) -> frozenset[str]:
    """The top-level options of a command, from the text of its file in configs/."""
    text = (files("vla.configs") / f"{name}.yaml").read_text()
    return frozenset(re.findall(r"^(?:  - )?(\w+):", text, re.MULTILINE)) - {"defaults"}


def _is_override(name: str, argument: str) -> bool:
    """Whether an argument is an override and no path with `=` in it, where a path may stand without its key."""
    match = OVERRIDE.match(argument)
    if not match or match[2] is None:
        return bool(match)
    key = re.split(r"[.@:/]", match[2])[0]
    named = bool(match[1]) or key in keys_of(name) or key == "hydra"
    return named or not ("/" in argument or Path(argument).exists())


def _free_positional(name: str, overrides: Sequence[str]) -> str | None:
    """The first positional option of a command that is not set yet."""
    given = {override.partition("=")[0] for override in overrides}
    return next((option for option in COMMANDS[name].positional if option not in given), None)


def _grammatical(name: str, override: str, multirun: bool) -> str:
    """The override, its value quoted where it is a path or text as typed."""
    key, _, value = override.partition("=")
    plain = key.lstrip("+")
    if value in ("null", "") or key.startswith("~"):
        return override
    if plain in COMMANDS[name].verbatim or any(fnmatchcase(plain, pattern) for pattern in TEXTS):
        already = re.fullmatch(r"""'[^'\\]*'|"[^"\\]*\"""", value)
        return override if already else f"{key}={quoted(value)}"
    if (name, plain) == ("data", "images"):  # whether they are looked at, not where they are
        return override
    if not (is_path(plain) or (plain == "task" and ".yaml" in value)) or _is_collection(plain, value):
        return f"{key}={QUOTED_KEY.sub(_unquoted_key, value)}" if value.startswith("{") else override
    return override if multirun and _is_readable(override) else f"{key}={quoted(value)}"


def _unquoted_key(match: re.Match[str]) -> str:
    return match[1] + re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", match[3])


def _is_collection(key: str, value: str) -> bool:
    """Whether a value is a list or a mapping of paths, where the option may be one."""
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

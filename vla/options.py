"""The options of a command: Hydra composes them, and every mistake becomes one line that names it.

Hydra ends here. A command receives its top-level keys as keyword arguments, swap points already built.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vla.errors import InputError

CONFIGS = "vla.configs"


def compose(command: str, overrides: Sequence[str]) -> DictConfig:
    """The options of `command`: its file in configs/ with `overrides` (Hydra's grammar) applied.

    Raises InputError that names the override which does not parse, fit or exist, or the option still to be given.
    """
    with hydra.initialize_config_module(CONFIGS, version_base="1.3"):
        defaults = hydra.compose(command)
    try:
        with hydra.initialize_config_module(CONFIGS, version_base="1.3"):
            config = hydra.compose(command, list(overrides))
        _check_types(defaults, config, overrides)
        if missing := sorted(OmegaConf.missing_keys(config)):
            raise InputError(f"say {', '.join(f'{key}=…' for key in missing)}; see `vla {command} --help`")
        OmegaConf.to_container(config, resolve=True)
    except OverrideParseException as error:
        raise _unreadable(error) from error
    except MissingConfigException as error:
        raise InputError(re.sub(r"\s+", " ", str(error).partition("Config search path")[0]).strip()) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_explain(command, defaults, error)) from error
    return config


def sweep(command: str, overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every run in the product of the values given as KEY=A,B,C."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise _unreadable(error) from error
    return BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]


def check_outputs_differ(configs: Sequence[DictConfig]) -> None:
    """Raises InputError when two runs of a sweep would write to the same place."""
    for out, count in Counter(str(config.out) for config in configs if config.get("out")).items():
        if count > 1:
            better = Path(out).with_stem(f"{Path(out).stem}-${{seed}}")
            raise InputError(f"{count} runs would all write {out}: name it by what differs, e.g. 'out={better}'")


def bind(function: Callable[..., Any], config: DictConfig) -> Callable[[], Any]:
    """`function` with the options as its keyword arguments: plain Python values, each `_target_` built.

    Raises InputError for an option that `function` does not take and for a `_target_` that cannot be built.
    """
    try:
        values = instantiate(config, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, TypeError | ImportError | None):
            raise InputError(_one_line(error)) from error
        raise
    try:
        inspect.signature(function).bind(**values)
    except TypeError as error:
        raise InputError(f"the options do not fit: {error}") from error
    return partial(function, **values)


def as_text(config: DictConfig) -> str:
    """The composed options as YAML."""
    return OmegaConf.to_yaml(config).rstrip()


def _check_types(defaults: DictConfig, config: DictConfig, overrides: Sequence[str]) -> None:
    """A number or a switch stays one: OmegaConf by itself takes any value for an untyped key."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        before = OmegaConf.select(defaults, override.key_or_group, throw_on_missing=False)
        after = OmegaConf.select(config, override.key_or_group, throw_on_missing=False)
        kinds: dict[type, tuple[tuple[type, ...], str]] = {
            bool: ((bool,), "true or false"),
            int: ((int,), "a whole number"),
            float: ((int, float), "a number"),
            ListConfig: ((ListConfig,), "a list, such as [A,B]"),
        }
        accepted, expected = kinds.get(type(before), ((), ""))
        if accepted and type(after) not in accepted:
            raise InputError(f"{override.input_line}: {override.key_or_group} takes {expected} (default {before})")


def _explain(command: str, defaults: DictConfig, error: Exception) -> str:
    if ambiguous := re.match(r"Ambiguous value for argument '([^']+)'", str(error)):
        return f"{ambiguous[1]} holds several values: add -m to run each, or quote it as 'KEY=\"A,B\"'"
    unknown = re.search(r"Could not (?:override|append to|find) '([^']+)'|Key '([^']+)' is not in struct", str(error))
    if unknown is None:
        return _one_line(error)
    key = unknown[1] or unknown[2]
    near = get_close_matches(key, list(_keys(OmegaConf.to_container(defaults))), n=1)
    return f"there is no option {key!r}{f', did you mean {near[0]!r}?' if near else ''}; see `vla {command} --help`"


def _unreadable(error: OverrideParseException) -> InputError:
    reason = _one_line(error).partition(" expecting ")[0]
    return InputError(f"cannot read {error.override!r}: {reason}; quote a value that holds special characters")


def _keys(values: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a nested mapping."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")


def _one_line(error: Exception) -> str:
    """Hydra's message without its pointers to keys and manuals."""
    return " ".join(re.split(r"\n *(?:full_key: |See )", str(error))[0].split())

"""Composes the options of a command with Hydra; every invalid option becomes a one-line error that names it.

No module below this one uses Hydra: a command receives its top-level keys as keyword arguments, with each `_target_`
already instantiated.
"""

from __future__ import annotations

import inspect
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vla.commands.arguments import is_path, keys_of
from vla.common.plugins import HEADS, ROBOTS, installed, plugin_parameters
from vla.common.renamed_keys import current_targets
from vla.common.source_signature import signature_of
from vla.errors import InputError, suggestion, unknown
from vla.training.train_config import TrainConfig

CONFIGS = "vla.configs"
PLUGINS = {"head": HEADS, "robot": ROBOTS}
"""The groups of configs/ to which other packages add."""


def compose(command: str, overrides: Sequence[str]) -> DictConfig:
    """The options of `command`: its file in configs/ with `overrides` (Hydra's grammar) applied.

    Raises:
        InputError: An override cannot be parsed, has the wrong type or is unknown, or a required option is not set.
    """
    parameters = _store_plugins(overrides)
    with hydra.initialize_config_module(CONFIGS, version_base="1.3"):
        defaults = known = hydra.compose(command)
    try:
        with hydra.initialize_config_module(CONFIGS, version_base="1.3"):
            if choices := [override for override in overrides if re.match(rf"({'|'.join(PLUGINS)})=\w", override)]:
                known = hydra.compose(command, choices)
            parts = (part for override in overrides for part in _replacing(override, defaults))
            config = hydra.compose(command, list(parts))
        _check_types(defaults, config, [part for part in overrides if part.partition("=")[0] not in parameters])
        _check_plugin_types(parameters, config)
        config = OmegaConf.create(_expanded(OmegaConf.to_container(config)))
        if missing := sorted(OmegaConf.missing_keys(config)):
            raise InputError(f"set {', '.join(f'{key}=…' for key in missing)}; see `vla {command} --help`")
        OmegaConf.to_container(config, resolve=True)
    except OverrideParseException as error:
        raise _unreadable(error) from error
    except MissingConfigException as error:
        raise InputError(_no_choice(str(error))) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_explain(command, known, error)) from error
    return config


def _store_plugins(overrides: Sequence[str]) -> dict[str, inspect.Parameter]:
    """Adds the choice `head=NAME` or `robot=NAME` of another package, with the defaults of its signature.

    Returns:
        The parameter of each of its options.
    """
    found: dict[str, inspect.Parameter] = {}
    for override in overrides:
        group, _, name = override.partition("=")
        if group not in PLUGINS or name not in installed(PLUGINS[group]):
            continue
        plugins = PLUGINS[group]
        parameters = plugin_parameters(plugins, name)
        parameters = parameters[1:] if group == "head" else parameters  # a head's first is the vocabulary
        first = {"kind": name} if group == "head" else {"_target_": installed(plugins)[name].value.replace(":", ".")}
        options = first | {p.name: "???" if p.default is p.empty else p.default for p in parameters}
        ConfigStore.instance().store(name, options, group)
        found |= {f"{group}.{p.name}": p for p in parameters}
    return found


def _check_plugin_types(parameters: Mapping[str, inspect.Parameter], config: DictConfig) -> None:
    """Raises InputError for a value that does not match the annotation of its parameter; without one, its default."""
    for key, parameter in parameters.items():
        value = OmegaConf.select(config, key, throw_on_missing=False)
        value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        kind = {bool: "bool", int: "float", float: "float"}.get(type(parameter.default), "")
        if (annotation := parameter.annotation) is not parameter.empty:
            kind = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        if not OmegaConf.is_missing(config, key) and value != parameter.default:
            _check_value(key, value, kind, inside=True)


def _replacing(override: str, defaults: DictConfig) -> list[str]:
    """An override as Hydra has it.

    Of `KEY={_target_: CLASS, ...}` the default choice of KEY is left out, with its options. A mapping whose default is
    empty has no known keys: it takes any.
    """
    key, _, value = override.partition("=")
    if key in defaults and defaults[key] == {}:
        return [f"++{override}"]
    replaces = key.isidentifier() and re.match(r"\s*\{\s*_target_\s*:", value)
    return [f"~{key}", f"+{override}"] if replaces else [override]


def sweep(command: str, overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each run: the Cartesian product of the values KEY=A,B,C."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise _unreadable(error) from error
    return BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]


def check_known(command: str, config: DictConfig) -> None:
    """Raises InputError for an option (+KEY=VALUE) that is not in the command's file in configs/."""
    known = keys_of(command)
    for key in sorted(map(str, config.keys() - known)):
        raise InputError(f"there is no option {key!r}{suggestion(key, known)}; see `vla {command} --help`")


def check_types(function: str, config: DictConfig) -> None:
    """Raises InputError for a value that does not match the annotation of its parameter of "module:name"."""
    parameters = signature_of(function)
    for name, value in values_of(config).items():
        if name in parameters and isinstance(annotation := parameters[name].annotation, str):
            _check_value(name, value, annotation)


def check_outputs_differ(configs: Sequence[DictConfig]) -> None:
    """Raises InputError if two runs of a sweep would write to the same output."""
    for out, count in Counter(str(config.out) for config in configs if config.get("out")).items():
        if count > 1:
            example = Path(out).with_stem(f"{Path(out).stem}-${{seed}}")
            raise InputError(f"{count} runs would all write {out}: name it by what differs, e.g. 'out={example}'")


def bind(function: Callable[..., Any], config: DictConfig) -> Callable[[], Any]:
    """Binds the options to the keyword arguments of `function`, or to the fields of its dataclass (`options_of`).

    They are plain Python values, with each `_target_` built.

    Raises:
        InputError: `function` does not take an option, a value has the wrong type, or a `_target_` cannot be built.
    """
    try:
        # Hydra instantiates only values with a `_target_`: in plain text it would resolve `${` as a reference.
        values = {
            key: instantiate(current_targets(value), _convert_="all") if _builds(value) else value
            for key, value in values_of(config).items()
        }
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        if str(error).startswith("Error locating target") and (cause := error.__cause__) is not None:
            target = str(error).split("'")[1]
            raise InputError(f"cannot import {target}: {_reason(cause)}") from error
        if isinstance(error.__cause__, TypeError | ImportError | None):
            raise InputError(_one_line(error)) from error
        raise
    kind = options_of(function)
    parameters = inspect.signature(kind or function).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for name in values.keys() - parameters.keys():
            raise InputError(f"there is no option {name!r}{suggestion(name, parameters)}")
    try:
        inspect.signature(kind or function).bind(**values)
    except TypeError as error:
        raise InputError(f"the options do not fit: {error}") from error
    for name, value in values.items():
        _check_value(name, value, str(parameters[name].annotation) if name in parameters else "")
    return partial(function, kind(**values)) if kind else partial(function, **values)


def options_of(function: Callable[..., Any]) -> type[Any] | None:
    """The dataclass of options that `function` takes as its only parameter; None: it takes each option."""
    if list(inspect.signature(function).parameters) != ["options"]:
        return None
    kind: type[Any] = get_type_hints(function)["options"]
    return kind


KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "true or false"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "text"),
}


def _check_value(name: str, value: Any, annotation: str, inside: bool = False) -> None:
    """Raises InputError for a value that does not match the annotation of its parameter; `inside` as in `_is_of`."""
    kinds = _either(annotation)
    if not any(_is_of(value, kind, inside) for kind in kinds):
        expected = " or ".join(_EXPECTED.get(kind.partition("[")[0], kind) for kind in kinds)
        raise InputError(f"{name}={'null' if value is None else value}: takes {expected}")


_EXPECTED = {
    **{kind: expected for kind, (_, expected) in KINDS.items()},
    "None": "null",
    "Sequence": "a list, such as [A,B]",
    "Mapping": "a mapping, such as {A: B}",
}


def _either(annotation: str) -> list[str]:
    """The alternatives of `A | B`, ignoring `|` within brackets."""
    return re.split(r" \| (?![^\[]*\])", annotation)


def _is_of(value: Any, kind: str, inside: bool = False) -> bool:
    """Whether a value matches one alternative of an annotation; true for kinds that are not in `_EXPECTED`.

    With `inside` (a list or mapping), a number or a boolean is accepted as text.
    """
    name, _, inner = kind.rstrip("]").partition("[")
    if kind in KINDS:
        accepted, _ = KINDS[kind]
        if inside and kind == "str":
            return not isinstance(value, list | tuple | Mapping)
        return isinstance(value, accepted) and (not isinstance(value, bool) or kind == "bool")
    if name == "Sequence":
        return isinstance(value, list | tuple) and all(_is_of(element, inner, True) for element in value)
    if name == "Mapping":
        value_kind = inner.partition(", ")[2]
        return isinstance(value, Mapping) and all(_is_of(element, value_kind, True) for element in value.values())
    return value is None if kind == "None" else True


def values_of(config: DictConfig) -> dict[str, Any]:
    """The options as plain values, without instantiating any `_target_`."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def as_text(config: DictConfig) -> str:
    """The composed options as YAML."""
    return OmegaConf.to_yaml(config).rstrip()


def _check_types(defaults: DictConfig, config: DictConfig, overrides: Sequence[str]) -> None:
    """Raises InputError if an override changes the type of an option; OmegaConf allows any value for untyped keys."""
    plan = {f"plan.{field.name}": field.default for field in fields(TrainConfig)}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        before = OmegaConf.select(defaults, key, throw_on_missing=False)
        after = OmegaConf.select(config, key, throw_on_missing=False)
        if before is None and after is not None:
            before = plan.get(key)
        kinds: dict[type, tuple[tuple[type, ...], str]] = {
            bool: KINDS["bool"],
            int: KINDS["int"],
            float: KINDS["float"],
            tuple: ((ListConfig,), "a list, such as [A,B]"),
            ListConfig: ((ListConfig,), "a list, such as [A,B]"),
        }
        accepted, expected = kinds.get(type(before), ((), ""))
        if accepted and (type(after) not in accepted):
            raise InputError(f"{override.input_line}: {key} takes {expected} (default {before})")


def _expanded(value: Any, key: str = "") -> Any:
    """The values with ~ at the start of a path (`vla.commands.arguments.PATHS`) replaced by the home folder."""
    if isinstance(value, Mapping):
        return {name: _expanded(element, f"{key}.{name}".lstrip(".")) for name, element in value.items()}
    if isinstance(value, list):
        return [_expanded(element, key) for element in value]
    if isinstance(value, str) and is_path(key):
        return re.sub(r"^(lerobot:)?(~[^/]*)", lambda m: (m[1] or "") + os.path.expanduser(m[2]), value)
    return value


def _explain(command: str, defaults: DictConfig, error: Exception) -> str:
    if ambiguous := re.match(r"Ambiguous value for argument '([^']+)'", str(error)):
        return f"{ambiguous[1]} holds several values: add -m to run each, or quote it as 'KEY=\"A,B\"'"
    missing = re.search(r"Could not (?:override|append to|find) '([^']+)'|Key '([^']+)' is not in struct", str(error))
    if missing is None:
        return _one_line(error)
    key, known = missing[1] or missing[2], {*_keys(OmegaConf.to_container(defaults)), *keys_of(command)}
    return f"there is no option {key!r}{suggestion(key, known)}; see `vla {command} --help`"


def _no_choice(message: str) -> str:
    """The error message for an unknown file of a group of configs/, such as `head=flo`."""
    found = re.search(
        r"Could not find '([\w-]+)/(.+)'\s+Available options in '[^']+':\s+(.+?)\s*Config search", message, re.S
    )
    if found is None:
        return re.sub(r"\s+", " ", message.partition("Config search path")[0]).strip()
    plugins = installed(PLUGINS[found[1]]) if found[1] in PLUGINS else ()
    return str(unknown(found[1], found[2], [*found[3].split(), *plugins]))


def _unreadable(error: OverrideParseException) -> InputError:
    reason = _one_line(error).partition(" expecting ")[0]
    return InputError(f"cannot read {error.override!r}: {reason}; quote a value that holds special characters")


def _builds(value: Any) -> bool:
    """Whether the value contains a `_target_`."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_builds, value.values()))
    return isinstance(value, list) and any(map(_builds, value))


def _keys(values: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a nested mapping."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")


def _reason(error: BaseException) -> str:
    """The first cause of an exception, with its type."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def _one_line(error: Exception) -> str:
    """Hydra's message on one line, without its references to keys and manuals."""
    return " ".join(re.split(r"\n *(?:full_key: |See )", str(error))[0].split())

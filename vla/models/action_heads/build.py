"""Builds action heads by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any

from vla.common.plugins import HEADS as PLUGINS
from vla.common.plugins import installed, load_plugin
from vla.common.renamed_keys import HEAD, current_keys
from vla.errors import InputError, suggestion
from vla.models.action_heads.action_head import Head, Vocabulary
from vla.models.action_heads.bins import BinsHead
from vla.models.action_heads.cross_flow import CrossFlowHead
from vla.models.action_heads.fast import FastHead
from vla.models.action_heads.flow import FlowMatchingHead
from vla.models.action_heads.l1 import RegressionHead
from vla.models.action_heads.parallel import ParallelHead
from vla.models.action_heads.text import TextHead

HEADS: dict[str, Callable[..., Head]] = {
    "parallel": ParallelHead,
    "bins": BinsHead,
    "fast": FastHead,
    "text": TextHead,
    "l1": RegressionHead,
    "flow": FlowMatchingHead,
    "cross-flow": CrossFlowHead,
}


def stored_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a checkpoint's head, converted to this version: older flows have an expert of another shape."""
    settings = current_keys(settings, HEAD)
    legacy = settings.get("kind") == "flow" and "expert" not in settings
    return dict(settings) | ({"expert": {}} if legacy else {})


class UnknownHead(InputError):
    """There is no head of that name; the package that has it may not be installed."""


def check_head(kind: object) -> None:
    """Raises UnknownHead where there is no head of that name, ours or of a plug-in."""
    known = [*HEADS, *installed(PLUGINS)]
    if kind not in known:
        raise UnknownHead(
            f"there is no head {kind}: choose of {', '.join(known)}{suggestion(kind, known)}, or install the package "
            "that has it"
        )


def changed_options(head: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a head that are not the defaults, and differ from the settings of a head of the same kind.

    Options that the head does not have are omitted where they are null or false.

    Raises:
        InputError: for another option that the head does not have.
    """
    kind = head["kind"]
    parameters = signature(HEADS.get(kind) or load_plugin(PLUGINS, kind)).parameters
    changed = {}
    for name, value in head.items():
        if name == "kind" or (name not in parameters and value in (None, False)):
            continue
        if name not in parameters and not any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values()):
            raise InputError(f"the head {kind} does not have the option head.{name}: leave it out")
        default = parameters[name].default if name in parameters else None
        if value != default and settings.get(name) != value:
            changed[name] = value
    return changed


def build_head(settings: Mapping[str, Any], vocabulary: Vocabulary) -> Head:
    """Builds the head of `settings`: its "kind" and its arguments.

    Raises:
        UnknownHead: for an unknown kind.
        InputError: for unknown arguments.
    """
    arguments = dict(settings)
    kind = arguments.pop("kind", None)
    check_head(kind)
    make: Callable[..., Head] = HEADS.get(kind) or load_plugin(PLUGINS, kind)
    try:
        return make(vocabulary, **arguments)
    except TypeError as error:
        raise InputError(f"the head {kind} does not take these settings: {error}") from error

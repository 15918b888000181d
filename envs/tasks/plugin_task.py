"""Checks what a task of another package declares, so that a mistake is one line and not an unusable store."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from string import Formatter
from typing import Any

from vla.envs.instructions import CHARACTERS, PHRASING_SETS
from vla.envs.tasks.task import Task
from vla.errors import InputError

DECLARED = ("name", "templates", "vocabulary")


def make_plugin_task(name: str, kind: Any) -> Task:
    """The task of an entry point.

    Args:
        name: The name of the entry point.
        kind: What it refers to.

    Raises:
        InputError: It is not a class of `Task`, lacks a member, has another name, or its phrasings do not fit together.
    """
    if not (isinstance(kind, type) and issubclass(kind, Task)):
        raise InputError(f"the task {name}: {kind!r} is no subclass of vla.envs.tasks.task.Task")
    missing = [member for member in DECLARED if not hasattr(kind, member)]
    if missing := [*missing, *(sorted(kind.__abstractmethods__) if inspect.isabstract(kind) else ())]:
        raise InputError(f"the task {name}: {kind.__qualname__} lacks {', '.join(missing)}")
    if kind.name != name:
        raise InputError(f"the task {name}: its class has name = {kind.name!r}: use the same name for the entry point")
    if mistake := next(_mistakes(kind.templates, kind.vocabulary), None):
        raise InputError(f"the task {name}: {mistake}")
    return kind()


def _mistakes(templates: Mapping[str, Any], vocabulary: Mapping[str, Any]) -> Iterator[str]:
    for group in PHRASING_SETS:
        if not templates.get(group) or not _texts(templates[group]):
            yield f"templates[{group!r}] must be a tuple of at least one wording, such as ('lift the {{object}}',)"
    for field, words in vocabulary.items():
        if not words or not _texts(words):
            yield f"vocabulary[{field!r}] must be a tuple of words, such as ('red cube', 'red ball')"
    for template in (text for group in PHRASING_SETS for text in templates[group]):
        parts = list(Formatter().parse(template))
        for field in (field for _, field, _, _ in parts if field is not None and field not in vocabulary):
            yield f"{template!r} has the field {field!r}, which is not in vocabulary: {', '.join(vocabulary)}"
        if other := sorted({character for text, *_ in parts for character in text} - set(CHARACTERS)):
            yield f"{template!r} contains {''.join(other)!r}: wordings consist of a to z, space and comma"


def _texts(value: Any) -> bool:
    """Whether it is a list or tuple of texts; a single text is none."""
    return isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)

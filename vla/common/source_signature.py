"""The parameters of functions and classes, read from their source files: an import may take seconds (torch)."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import find_spec
from inspect import Parameter
from pathlib import Path

DEFINITION = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def parameters_of(target: str) -> list[Parameter] | None:
    """The parameters of "module:name" without an import; None if there is no source file, or as `parameters_in`."""
    module, _, name = target.partition(":")
    file = _source_file(module)
    return None if file is None else parameters_in(file.read_bytes(), name)


def signature_of(target: str) -> dict[str, Parameter]:
    """The parameters of "module:name" by name; it is imported only if its source does not state them plainly."""
    found = parameters_of(target)
    if found is None:
        module, _, name = target.partition(":")
        found = list(inspect.signature(getattr(import_module(module), name)).parameters.values())
    return {parameter.name: parameter for parameter in found}


def parameters_in(source: str | bytes, name: str) -> list[Parameter] | None:
    """The parameters of a function, or of the `__init__` of a class, at the top level of a module, without * and **.

    None if only the import can tell them: the name is bound several times or by an import, `__init__` is inherited, a
    decorator or a metaclass may change it, or a default value is not a literal. Annotations are text.
    """
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError):  # the import reports it
        return None
    definitions = [node for node in body if name in _names_bound(node)]
    function = definitions[0] if len(definitions) == 1 else None
    skipped = 0
    if isinstance(function, ast.ClassDef) and not function.decorator_list and not function.keywords:
        inits = [node for node in function.body if {"__init__", "__new__"} & _names_bound(node)]
        function, skipped = inits[0] if len(inits) == 1 else None, 1
    if not isinstance(function, ast.FunctionDef) or function.decorator_list or function.name == "__new__":
        return None
    try:
        return _parameters(function.args)[skipped:]
    except ValueError:  # a default value is not a literal
        return None


def _parameters(arguments: ast.arguments) -> list[Parameter]:
    """Raises ValueError if a default value is not a literal."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [*[None] * (len(positional) - len(arguments.defaults)), *arguments.defaults]
    names, values = [*positional, *arguments.kwonlyargs], [*defaults, *arguments.kw_defaults]
    return [
        Parameter(
            argument.arg,
            Parameter.POSITIONAL_OR_KEYWORD if at < len(positional) else Parameter.KEYWORD_ONLY,
            default=Parameter.empty if default is None else ast.literal_eval(default),
            annotation=_text(argument.annotation),
        )
        for at, (argument, default) in enumerate(zip(names, values, strict=True))
    ]


def _text(annotation: ast.expr | None) -> object:
    if annotation is None:
        return Parameter.empty
    stated = isinstance(annotation, ast.Constant) and isinstance(annotation.value, str)
    return annotation.value if stated else ast.unparse(annotation)  # type: ignore[attr-defined]


def _names_bound(statement: ast.stmt) -> set[str]:
    """The names that a statement may bind."""
    if isinstance(statement, DEFINITION):
        return {statement.name}
    nodes = list(ast.walk(statement))
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    bound |= {node.asname or node.name for node in nodes if isinstance(node, ast.alias)}
    return bound | {node.name for node in nodes if isinstance(node, DEFINITION)}


def _source_file(module: str) -> Path | None:
    """The source file of a module, without importing the packages that contain it."""
    top, *inner = module.split(".")
    try:
        spec = find_spec(top)
    except ValueError:  # a module without a specification
        return None
    name = top
    for part in inner:
        name = f"{name}.{part}"
        locations = None if spec is None else spec.submodule_search_locations
        spec = None if locations is None else PathFinder.find_spec(name, locations)
    origin = None if spec is None else spec.origin
    return Path(origin) if origin is not None and origin.endswith(".py") else None

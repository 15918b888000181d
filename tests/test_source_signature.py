"""Parameters are read from the source without an import, if the source states them plainly."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from vla.common.source_signature import parameters_in, parameters_of

PLAIN = [
    "def make(vocabulary, delta=1.0, *, width: 'int | None' = None, names=('a', 'b')): pass",
    "class make:\n    x = 1\n    def __init__(self, vocabulary, delta=-2, **more): pass\n    def loss(self): pass",
    "import os\ndef other(a): pass\ndef make(): pass",
    "class make:\n    def __init__(self, delta: float = 1.0, *, wide: bool): pass",
]
UNCLEAR = [
    "def other(): pass",
    "from package import make",
    "make = 3",
    "def make(): pass\nmake = wrap(make)",
    "if True:\n    def make(): pass\nelse:\n    def make(a): pass",
    "@wrap\ndef make(a): pass",
    "@dataclass\nclass make:\n    a: int",
    "class make(Base): pass",
    "class make(metaclass=Other):\n    def __init__(self, a): pass",
    "class make:\n    @wrap\n    def __init__(self, a): pass",
    "class make:\n    def __new__(cls, a): pass",
    "def make(a=DEFAULT): pass",
    "def make(:",
]


@pytest.mark.parametrize("source", PLAIN)
def test_parameters_are_those_of_an_import(source: str) -> None:
    namespace: dict[str, object] = {}
    exec(compile(source, "plugin.py", "exec", dont_inherit=True), namespace)
    expected = [
        (
            p.name,
            p.kind,
            p.default,
            p.annotation if isinstance(p.annotation, str) else inspect.formatannotation(p.annotation),
        )
        for p in inspect.signature(namespace["make"]).parameters.values()  # type: ignore[arg-type]
        if p.kind is not p.VAR_KEYWORD
    ]
    found = parameters_in(source, "make")
    assert found is not None
    empty = inspect.formatannotation(inspect.Parameter.empty)
    assert [(p.name, p.kind, p.default, empty if p.annotation is p.empty else p.annotation) for p in found] == expected


@pytest.mark.parametrize("source", UNCLEAR)
def test_a_source_that_does_not_state_them_plainly_is_not_read(source: str) -> None:
    assert parameters_in(dedent(source), "make") is None


def test_a_module_in_a_package_is_found_without_importing_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_package" / "inner").mkdir(parents=True)
    for folder in ("slow_package", "slow_package/inner"):
        (tmp_path / folder / "__init__.py").write_text("raise RuntimeError")
    (tmp_path / "slow_package" / "inner" / "head.py").write_text("def make(a): pass")
    monkeypatch.syspath_prepend(tmp_path)
    found = parameters_of("slow_package.inner.head:make")
    assert found is not None and [parameter.name for parameter in found] == ["a"]
    assert parameters_of("slow_package.inner.other:make") is None
    assert parameters_of("no_package.head:make") is None
    assert "slow_package" not in sys.modules

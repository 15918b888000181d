"""Behaviour is what it was: see `golden.py`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from golden import CASES, CHECKPOINTS, DATA, FILE, chunks, head_model

from vla.model import VLA

GOLDEN = json.loads(FILE.read_text())
TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}
"""Of float32, and of another processor."""


def check(found: Any, expected: Any, where: str) -> None:
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for name, value in expected.items():
            check(found[name], value, f"{where}, {name}")
    elif isinstance(expected, list) and expected and isinstance(expected[0], float):
        np.testing.assert_allclose(found, expected, **TOLERANCE, err_msg=where)
    else:
        assert found == expected, where


@pytest.mark.parametrize("name", sorted(CASES))
def test_it_is_what_it_was(name: str) -> None:
    check(CASES[name](), GOLDEN[name], name)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_written_before_acts_as_it_did(name: str) -> None:
    model = VLA.load(DATA / f"checkpoint-{name}")
    expected = {key: GOLDEN[f"head {name}"][key] for key in ("plain", "engine", "plain with a prefix")}
    found = chunks(model)
    check({key: found[key] for key in expected}, expected, name)
    assert chunks(head_model(name)) == found

"""Behaviour is what it was: see `golden.py`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from golden import CASES, CHECKPOINTS, DATA, FILE, STORE, chunks, head_model, stored

from vla.common.renamed_keys import HEAD, current_override
from vla.datasets.episodes import EpisodeStore
from vla.models.vla import VLA

GOLDEN = json.loads(FILE.read_text())
TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}
"""Of float32, and of another processor."""
TOLERANCES = {"rollout": {"rtol": 0.0, "atol": 3e-3}}
"""Radians: renderers of other processors differ by a level of a pixel, and the simulation amplifies it."""


def check(found: Any, expected: Any, where: str) -> None:
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for name, value in expected.items():
            check(found[name], value, f"{where}, {name}")
    elif isinstance(expected, list) and expected and isinstance(expected[0], float):
        np.testing.assert_allclose(found, expected, **TOLERANCES.get(where, TOLERANCE), err_msg=where)
    else:
        assert found == expected, where


def _current(file: str, options: list[str]) -> set[str]:
    """The present names of the options of a file: `vla` takes the earlier ones, and says so."""
    group, _, name = file.removesuffix(".yaml").rpartition("/")
    if group == "head":
        return {HEAD.get(option, option) for option in options}
    command = "train" if group in ("stage", "recipe") else name
    return {current_override(command, option)[0] for option in options}


def test_options_may_come_but_none_goes() -> None:
    found = CASES["options"]()
    gone = {file: _current(file, known) - set(found.get(file, ())) for file, known in GOLDEN["options"].items()}
    assert not any(gone.values()), gone


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"options"}))
def test_it_is_what_it_was(name: str) -> None:
    check(CASES[name](), GOLDEN[name], name)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_written_before_acts_as_it_did(name: str) -> None:
    model = VLA.load(DATA / f"checkpoint-{name}")
    expected = {key: GOLDEN[f"head {name}"][key] for key in ("plain", "engine", "plain with a prefix")}
    found = chunks(model)
    check({key: found[key] for key in expected}, expected, name)
    assert chunks(head_model(name)) == found


def test_a_store_written_before_is_read_as_it_was() -> None:
    with EpisodeStore.open(STORE) as store:
        for found, expected in zip(store, stored(), strict=True):
            for name in ("instruction", "success", "info", "paraphrases", "spans"):
                assert getattr(found, name) == getattr(expected, name), name
            for name in ("state", "action", "time"):
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
            for kind in ("images", "extras"):
                for name, values in getattr(expected, kind).items():
                    np.testing.assert_array_equal(getattr(found, kind)[name], values)
            for name in ("points", "chunks"):
                if (values := getattr(expected, name)) is not None:
                    np.testing.assert_array_equal(getattr(found, name)[:, : values.shape[1]], values)

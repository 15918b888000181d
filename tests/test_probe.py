"""A policy is tried on a made-up observation before the robot is connected."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from control_fakes import BODY

from vla.common.start_region import StartRegion
from vla.control.probe import probe
from vla.errors import InputError
from vla.policies.data_summary import DataSummary
from vla.types import ActionChunk, Observation, RTCPrefix

SIZES = {"front": (48, 64)}


class Trying:
    """Records its calls, and answers `say`."""

    def __init__(self, say: Callable[[Observation], ActionChunk | None]) -> None:
        self.embodiment, self.say = BODY, say
        self.calls: list[tuple[Observation, RTCPrefix | None]] = []
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk | None:
        self.calls.append((observation, prefix))
        return self.say(observation)


def stay(seen: Observation) -> ActionChunk:
    return ActionChunk(np.tile(seen.state, (4, 1)), seen.time, 0.1)


def test_it_is_asked_as_the_loop_asks_and_forgets_it() -> None:
    policy = Trying(stay)
    probe(policy, BODY, SIZES, "rtc")
    (plain, none), (_, prefix) = policy.calls
    assert none is None and prefix is not None and prefix.committed.shape == (1, 3) and policy.resets == 1
    assert plain.images["front"].shape == (48, 64, 3)
    np.testing.assert_allclose(plain.state, [0.0, 0.0, 0.75])  # the middle of the robot's range
    probe(policy, BODY, SIZES, "chunked")
    assert [given is None for _, given in policy.calls] == [True, False, True]


def test_it_begins_where_the_demonstrations_do() -> None:
    policy = Trying(stay)
    policy.data = DataSummary(start=StartRegion((0.0,) * 3, (0.1, 0.2, 0.3), (1.0,) * 3))  # type: ignore[attr-defined]
    probe(policy, BODY, SIZES, "chunked")
    np.testing.assert_allclose(policy.calls[0][0].state, [0.1, 0.2, 0.3])


def test_one_that_takes_no_prefix_is_given_none() -> None:
    policy = Trying(stay)
    policy.takes_prefix = False  # type: ignore[attr-defined]
    probe(policy, BODY, SIZES, "rtc")
    assert len(policy.calls) == 1


def test_no_valid_chunk_is_no_mistake_and_cameras_of_unknown_size_are_not_made_up() -> None:
    probe(Trying(lambda seen: None), BODY, SIZES, "rtc")
    policy = Trying(stay)
    probe(policy, BODY, {}, "rtc")
    assert not policy.calls


def refuse(seen: Observation) -> ActionChunk:
    raise InputError("trained on images of 96 x 96")


@pytest.mark.parametrize(
    ("say", "words"),
    [
        (refuse, "cannot act on what this robot observes: trained on images of 96 x 96"),
        (lambda seen: 1 / 0, "ZeroDivisionError"),
        (lambda seen: ActionChunk(np.zeros((4, 2)), 0.0, 0.1), "2 components"),
        (lambda seen: ActionChunk(np.full((4, 3), np.nan), 0.0, 0.1), "not finite"),
        (lambda seen: ActionChunk(np.zeros((4, 3)), 0.0, 1 / 30), "30 actions a second, the robot takes 10"),
    ],
)
def test_what_does_not_fit_is_named(say: Callable[[Observation], ActionChunk | None], words: str) -> None:
    with pytest.raises(InputError, match=words):
        probe(Trying(say), BODY, SIZES, "rtc")

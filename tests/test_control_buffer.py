"""Chunks of a slow policy, put one after the other."""

from __future__ import annotations

import numpy as np
import pytest
from control_fakes import BODY, HORIZON, follow_wave, wave
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.control.action_queue import ActionQueue
from vla.control.inference import Answer, Request
from vla.types import ActionChunk, Observation

HELD = np.array([0.1, 0.2, 0.3])


def observation(time: float) -> Observation:
    return Observation({}, np.zeros(3), "wave", time)


def run(
    execution: str, delays: list[int], n_action_steps: int, steps: int = 40
) -> tuple[list[Request], dict[int, np.ndarray]]:
    """The requests, and what was carried out at each step: one period a step, `delays` in periods."""
    buffer, requests, done = (
        ActionQueue(BODY, execution, n_action_steps, 100.0),
        list[Request](),
        dict[int, np.ndarray](),
    )
    coming: tuple[int, Answer] | None = None
    held = HELD
    for period in range(steps):
        if coming is not None and coming[0] <= period:
            buffer.take(coming[1], period)
            coming = None
        if coming is None and buffer.due(period):
            requests.append(request := buffer.request(observation(period), held, period))
            delay = delays[len(requests) % len(delays)]
            coming = period + delay, Answer(request, follow_wave(request), period, period + delay)
        at, action = buffer.step, buffer.advance(period)
        held = held if action is None else action
        if buffer.step > at:
            done[at] = held
    return requests, done


@settings(max_examples=15)
@given(delay=st.integers(1, 14), n_action_steps=st.integers(1, 12))
def test_the_prefix_is_what_is_carried_out(delay: int, n_action_steps: int) -> None:
    requests, done = run("rtc", [delay], n_action_steps)
    continuing = [request for request in requests if request.prefix is not None]
    assert continuing or len(requests) < 3  # the first answer's delay does not count
    for request in continuing:
        assert request.prefix is not None and len(request.prefix.committed) == delay
        for ahead, promised in enumerate(request.prefix.committed):
            if request.start + ahead in done:
                np.testing.assert_array_equal(done[request.start + ahead], promised)


@settings(max_examples=15)
@given(delay=st.integers(1, 10), n_action_steps=st.integers(1, 12), execution=st.sampled_from(["guided", "guided-vjp"]))
def test_a_guided_request_has_all_remaining_actions(delay: int, n_action_steps: int, execution: str) -> None:
    requests, _ = run(execution, [delay], n_action_steps)
    for old, new in zip(requests, requests[1:], strict=False):
        left = follow_wave(old).actions[new.start - old.start :]
        if new.prefix is None:
            continue
        remaining = new.prefix.committed
        if new.prefix.leftover is not None:
            assert new.prefix.guidance_mode == ("vjp" if execution == "guided-vjp" else "identity")
            remaining = np.concatenate([remaining, new.prefix.leftover])
        np.testing.assert_array_equal(remaining[: len(left)], left)


def test_a_delay_that_is_known_is_reckoned_with_from_the_second_chunk_on() -> None:
    for known, count in ((None, 0), (3, 3)):
        buffer = ActionQueue(BODY, "rtc", 2, 100.0, delay=known)
        first = buffer.request(observation(0.0), HELD, 0.0)
        assert first.prefix is None
        buffer.take(Answer(first, follow_wave(first), 0.0, 0.0), 0.0)
        second = buffer.request(observation(0.1), HELD, 0.1)
        assert (0 if second.prefix is None else len(second.prefix.committed)) == count


@settings(max_examples=20)
@given(delays=st.lists(st.integers(0, 20), min_size=1, max_size=5), n_action_steps=st.integers(1, 12))
def test_no_stale_step_is_carried_out(delays: list[int], n_action_steps: int) -> None:
    _, done = run("chunked", delays, n_action_steps)
    for step, action in done.items():
        np.testing.assert_allclose(action, wave(np.array(float(step))))


def test_an_ensemble_weighs_the_oldest_most() -> None:
    buffer = ActionQueue(BODY, "ensemble", 1, 100.0)
    for value in (0.0, 1.0):
        request = buffer.request(observation(0.0), HELD, 0.0)
        buffer.take(Answer(request, ActionChunk(np.full((HORIZON, 3), value), 0.0, 0.1), 0.0, 0.0), 0.0)
    action = buffer.advance(0.0)
    assert action is not None
    np.testing.assert_allclose(action, np.exp(-0.01) / (1 + np.exp(-0.01)))


@pytest.mark.parametrize("actions", [np.full((4, 3), np.nan), np.zeros((4, 2)), None])
def test_an_invalid_chunk_leaves_the_old_one_in_force(actions: np.ndarray | None) -> None:
    buffer = ActionQueue(BODY, "chunked", 2, 100.0)
    request = buffer.request(observation(0.0), HELD, 0.0)
    assert buffer.take(Answer(request, follow_wave(request), 0.0, 0.0), 0.0) == ""
    request = buffer.request(observation(0.1), HELD, 0.1)
    chunk = None if actions is None else ActionChunk(actions, 0.1, 0.1)
    assert buffer.take(Answer(request, chunk, 0.1, 0.1), 0.1)
    assert len(buffer.rest(0.1)) == HORIZON

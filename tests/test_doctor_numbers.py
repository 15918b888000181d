"""The detectors of `vla data doctor` that read numbers: what is planted is found, where it is, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import HZ, arm, changed, record, scaled

from vla.datasets.doctor.diagnose import CHECKS
from vla.datasets.doctor.finding import AddToAction, Drop, Finding, ShiftActions, Trim
from vla.datasets.doctor.idle import idle_ends, idle_pauses
from vla.datasets.doctor.motion import jerk
from vla.datasets.doctor.recording import Recording
from vla.datasets.doctor.robust import center, core_spread, runs, spread
from vla.datasets.doctor.skipped import check_skipped
from vla.datasets.doctor.timing import lost_frames
from vla.embodiment import Rotation

ODD = [3, 11, 12, 20]
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def findings(data: Recording) -> list[Finding]:
    return [finding for check in CHECKS for finding in check(data)]


def found(data: Recording) -> dict[str, set[int]]:
    """The episodes of each check."""
    return {finding.check: set(finding.episodes) for finding in findings(data)}


@settings(max_examples=12)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["absolute", "delta", "velocity"]),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.003, 0.02]),
)
def test_nothing_is_found_in_clean_episodes(seed: int, mode: str, episodes: int, noise: float) -> None:
    body = arm(action_mode=(mode,) * 4)
    assert findings(record(seed, episodes, body, noise if mode == "absolute" else noise / 10)) == []


def idle(state: np.ndarray, action: np.ndarray, time: np.ndarray) -> Arrays:
    still = [np.concatenate([np.repeat(values[:1], 20, axis=0), values]) for values in (state, action)]
    still[1][:20] = state[0]
    return still[0], still[1], np.arange(len(time) + 20) / HZ


def idle_end(state: np.ndarray, action: np.ndarray, time: np.ndarray) -> Arrays:
    still = [np.concatenate([values, np.repeat(values[-1:], 20, axis=0)]) for values in (state, action)]
    return still[0], still[1], np.arange(len(time) + 20) / HZ


def pause(state: np.ndarray, action: np.ndarray, time: np.ndarray) -> Arrays:
    still = [np.concatenate([v[:20], np.repeat(v[20:21], 20, axis=0), v[20:]]) for v in (state, action)]
    return still[0], still[1], np.arange(len(time) + 20) / HZ


def drop(state: np.ndarray, action: np.ndarray, time: np.ndarray) -> Arrays:
    return tuple(np.delete(values, [7, 8, 25], axis=0) for values in (state, action, time))  # type: ignore[return-value]


def offset(state: np.ndarray, action: np.ndarray, time: np.ndarray) -> Arrays:
    action[:, 1] += np.deg2rad(17)
    return state, action, time


def late(state: np.ndarray, action: np.ndarray, time: np.ndarray) -> Arrays:
    return state, action[np.clip(np.arange(len(action)) + 2, 0, len(action) - 1)], time


def early(state: np.ndarray, action: np.ndarray, time: np.ndarray) -> Arrays:
    return state, action[np.clip(np.arange(len(action)) - 2, 0, len(action) - 1)], time


def spike(state: np.ndarray, action: np.ndarray, time: np.ndarray) -> Arrays:
    state[10, 2] += 2.0
    return state, action, time


def tremble(state: np.ndarray, action: np.ndarray, time: np.ndarray) -> Arrays:
    shaking = np.random.default_rng(0).normal(0, 0.25, state.shape)
    return state + shaking, action, time


def stale(state: np.ndarray, action: np.ndarray, time: np.ndarray) -> Arrays:
    state[15:24] = state[15]
    return state, action, time


def far(state: np.ndarray, action: np.ndarray, time: np.ndarray) -> Arrays:
    return state + [0, 0, 0, 15.0], action + [0, 0, 0, 15.0], time


def long(state: np.ndarray, action: np.ndarray, time: np.ndarray) -> Arrays:
    rng = np.random.default_rng(1)
    from recordings import smooth

    path = smooth(rng, 401, HZ)
    return path[:400] + rng.normal(0, 0.01, (400, 4)), path[1:], np.arange(400) / HZ


PLANTED = [
    (idle, "idle-start"),
    (idle_end, "idle-end"),
    (pause, "pause"),
    (drop, "dropped-frames"),
    (offset, "offset"),
    (late, "action-delay"),
    (early, "action-delay"),
    (spike, "spike"),
    (tremble, "jerk"),
    (stale, "stale-state"),
    (far, "outlier-values"),
]


@pytest.mark.parametrize(("change", "check"), PLANTED, ids=lambda value: getattr(value, "__name__", str(value)))
def test_what_is_planted_is_found_where_it_is(change: Callable[..., Arrays], check: str) -> None:
    odd = ODD[:1] if check == "outlier-values" else ODD
    for seed in range(3):
        assert found(changed(record(seed), odd, change)).get(check) == set(odd)


@pytest.mark.parametrize(("change", "check"), PLANTED[:9], ids=lambda value: getattr(value, "__name__", str(value)))
@pytest.mark.parametrize("factor", [1e-3, 57.3])
def test_units_do_not_matter(factor: float, change: Callable[..., Arrays], check: str) -> None:
    plain = changed(record(0, body=arm("")), ODD, change)
    assert found(scaled(plain, factor)) == found(plain)


def test_a_long_episode_is_unlike_the_others() -> None:
    assert found(changed(record(), [5], long)) == {"outlier-length": {5}}


@pytest.mark.parametrize("mode", ["delta", "velocity"])
def test_delays_of_deltas_and_velocities(mode: str) -> None:
    body = arm(action_mode=(mode,) * 4)
    assert found(changed(record(1, body=body, noise=0.001), ODD, late))["action-delay"] == set(ODD)
    # An offset says nothing where an action is no position.
    assert "offset" not in found(changed(record(1, body=body, noise=0.001), ODD, offset))


def test_a_delay_is_seen_in_episodes_of_a_second() -> None:
    whole = record(3)
    data = changed(whole, list(range(30)), lambda *arrays: tuple(values[20:31] for values in arrays))
    assert "action-delay" not in found(data)
    for change in (late, early):
        assert found(changed(data, ODD, change))["action-delay"] == set(ODD)


def test_an_offset_of_a_gripper_is_told_from_what_it_holds() -> None:
    rng = np.random.default_rng(0)
    body = arm(grippers=("roll [rad]",))
    plain = record(4, body=body)

    def hold(state: np.ndarray, action: np.ndarray, time: np.ndarray) -> Arrays:
        # It opens, closes until something a little wider or narrower stops it, and opens.
        closed = slice(rng.integers(8, 14), rng.integers(24, 36))
        action[:, 3] = 1.0
        action[closed, 3] = 0.1
        state[1:, 3] = np.maximum(action[:-1, 3], 0)
        state[closed.start + 1 : closed.stop + 1, 3] = rng.uniform(0.4, 0.55)
        return state, action, time

    def apart(state: np.ndarray, action: np.ndarray, time: np.ndarray) -> Arrays:
        action[:, 3] += np.deg2rad(17)
        return state, action, time

    data = changed(plain, list(range(30)), hold)
    assert "offset" not in found(data)
    finding = one(changed(data, ODD, apart), "offset")
    assert (set(finding.episodes), finding.subject) == (set(ODD), "roll [rad]")


def one(data: Recording, check: str) -> Finding:
    (finding,) = (finding for finding in findings(data) if finding.check == check)
    return finding


@pytest.mark.parametrize("mode", ["absolute", "delta"])
def test_a_delay_of_all_episodes_is_undone_by_the_shift_that_is_proposed(mode: str) -> None:
    body = arm(action_mode=(mode,) * 4)
    noise = 0.01 if mode == "absolute" else 0.001
    finding = one(record(2, body=body, noise=noise, lag=3), "action-delay")
    # Three steps: one is what a target takes at least; a change begins with the step that commands it.
    assert finding.remedy == ShiftActions(-2)
    assert finding.episodes == tuple(range(30))


def test_an_offset_of_all_episodes_is_undone_by_what_is_proposed() -> None:
    finding = one(changed(record(), list(range(30)), offset), "offset")
    assert isinstance(finding.remedy, AddToAction) and finding.remedy.component == "lift [rad]"
    assert finding.remedy.amount == pytest.approx(-np.deg2rad(17), abs=0.01)
    assert finding.subject == "lift [rad]" and "17°" in finding.text


@given(st.integers(0, 10**6))
@settings(max_examples=5)
def test_a_shift_of_most_episodes_is_not_blamed_on_the_others(seed: int) -> None:
    odd = list(range(20))
    assert set(one(changed(record(seed), odd, offset), "offset").episodes) == set(odd)


def test_angles_that_wrap_are_no_spikes_and_no_offset() -> None:
    turn = 2 * np.pi
    body = arm(action_turn=(turn,) * 4)
    data = record(3, body=body)
    state, action = ((values + np.pi) % turn - np.pi for values in (data.state + np.pi, data.action + np.pi))
    wrapped = Recording.of_arrays(body, state, action, data.time, data.bounds)
    assert findings(wrapped) == []
    plain = Recording.of_arrays(arm(), state, action, data.time, data.bounds)
    assert "wraps" in found(plain) or "spike" in found(plain)


def test_quaternions_may_change_their_sign() -> None:
    rng = np.random.default_rng(0)
    names = ("w", "x", "y", "z")
    body = arm(state=names, action=names, rotations=(Rotation((0, 1, 2, 3), "quaternion_wxyz", (0, 1, 2, 3)),))
    data = record(4, body=body)
    quaternions = data.state / np.linalg.norm(data.state, axis=1, keepdims=True)
    signs = rng.choice([-1, 1], (len(quaternions), 1))
    flipped = Recording.of_arrays(body, quaternions * signs, quaternions * -signs, data.time, data.bounds)
    for part in data.slices():
        same = flipped.state[part] * np.sign((flipped.state[part] * quaternions[part]).sum(axis=1))[:, None]
        np.testing.assert_allclose(
            np.abs(np.diff(flipped.state[part], axis=0)).max(), np.abs(np.diff(same, axis=0)).max()
        )


def test_missing_frames_are_seen_without_timestamps() -> None:
    rng = np.random.default_rng(0)

    def every_twentieth(state: np.ndarray, action: np.ndarray, time: np.ndarray) -> Arrays:
        kept = rng.random(len(time)) > 0.05
        return state[kept], action[kept], np.arange(kept.sum()) / HZ

    data = record(5, noise=0.003)
    assert check_skipped(data) == []
    (finding,) = check_skipped(changed(data, list(range(30)), every_twentieth))
    assert finding.check == "dropped-frames" and len(finding.episodes) == 30


def test_gaps_are_counted_and_a_late_frame_is_none() -> None:
    steps = np.array([0.1, 0.2, 0.1, 0.4, 0.1, 0.16, 0.04, *[0.1] * 20])
    assert lost_frames(steps, np.ones(27, bool), 0.1).tolist() == [0, 1, 0, 3] + [0] * 23


def test_clocks_that_stand_or_run_otherwise_are_named() -> None:
    data = record()
    assert found(replace(data, time=np.zeros_like(data.time))).keys() == {"timestamps"}
    assert found(replace(data, time=data.time * 2)).keys() == {"rate"}

    def back(state: np.ndarray, action: np.ndarray, time: np.ndarray) -> Arrays:
        time[5] = time[3]
        return state, action, time

    assert found(changed(data, ODD, back))["timestamps"] == set(ODD)


def test_components_that_do_not_move_or_are_clipped() -> None:
    data = record()
    state, action = data.state.copy(), data.action.copy()
    state[:, 0] = 0.5
    action[:, 1] = np.minimum(action[:, 1], 0.2)
    state[:, 3] = action[:, 3] = 1e-4 * state[:, 3]
    state[data.bounds[7] + 5 : data.bounds[7] + 8, 3] = 2.0
    odd = Recording.of_arrays(data.body, state, action, data.time, data.bounds)
    by_check: dict[str, Any] = {finding.check: finding for finding in findings(odd)}
    assert by_check["constant"].subject == "pan [rad]"
    assert by_check["dead-joint"].subject == "pan [rad]"
    assert by_check["clipped"].subject == "lift [rad]" and "0.2" in by_check["clipped"].text
    assert by_check["rarely-moves"].subject == "roll [rad]" and by_check["rarely-moves"].episodes == (7,)


def test_copies_are_found() -> None:
    data = record(episodes=6)
    again = Recording.of_arrays(
        data.body,
        *(np.concatenate([values, values[: data.bounds[1]]]) for values in (data.state, data.action, data.time)),
        np.append(data.bounds, data.bounds[-1] + data.bounds[1]),
    )
    assert found(again) == {"duplicate": {6}}


def test_idle_ends_are_trimmed_and_odd_episodes_left_out() -> None:
    finding = one(changed(record(), ODD, idle), "idle-start")
    assert isinstance(finding.remedy, Trim)
    assert {episode: ranges[0] for episode, ranges in finding.steps.items()}.keys() == set(ODD)
    assert all(20 <= ranges[0][1] <= 24 for ranges in finding.steps.values())
    assert isinstance(one(changed(record(), ODD, spike), "spike").remedy, Drop)


@given(st.lists(st.booleans(), max_size=30))
def test_runs_are_where_the_mask_is_true(mask: list[bool]) -> None:
    covered = np.zeros(len(mask), bool)
    for start, stop in runs(np.array(mask, bool)).tolist():
        assert not covered[start:stop].any() and (start == 0 or not mask[start - 1])
        covered[start:stop] = True
    assert covered.tolist() == mask


@given(st.integers(0, 10**6), st.floats(0.1, 1e3), st.floats(-1e3, 1e3))
def test_robust_statistics_move_with_the_data_and_not_with_the_bad(seed: int, factor: float, shift: float) -> None:
    values = np.random.default_rng(seed).normal(size=101)
    odd = values.copy()
    odd[:40] += 50.0
    for data in (values, odd):
        assert abs(center(data)) < 1.0 and core_spread(data) < 3.0
        np.testing.assert_allclose(center(data * factor + shift), center(data) * factor + shift, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(core_spread(data * factor + shift), core_spread(data) * factor, rtol=1e-6)
        np.testing.assert_allclose(spread(data * factor + shift), spread(data) * factor, rtol=1e-6)


@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_jerk_has_no_unit(seed: int, factor: float) -> None:
    values = np.random.default_rng(seed).normal(size=(30, 3)).cumsum(axis=0)
    np.testing.assert_allclose(jerk(values * factor), jerk(values), rtol=1e-6)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(3, 12))
def test_still_steps_are_counted_exactly(begin: int, end: int, moving: int) -> None:
    path = np.concatenate([np.zeros(begin), np.arange(1, moving + 1) * 2.0, np.full(end, (moving + 1) * 2.0)])
    assert idle_ends(path[:, None]) == (max(begin, 1), max(end, 1))
    whole = np.concatenate([np.arange(5) * 2.0, np.full(moving, 10.0), 12 + np.arange(5) * 2.0])
    assert idle_pauses(whole[:, None], moving) == [(5, 5 + moving)]

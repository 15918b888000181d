"""A policy of a robot's components in other units, and what its data say of the units that they are in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ee_stores import in_degrees, moving
from scripted_policy import RowByRow

from vla.common.start_region import StartRegion
from vla.control.adapt import adapt
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.policies.converted_units import ConvertedPolicy
from vla.policies.data_summary import DataSummary
from vla.policies.policy import BatchPolicy, guides, takes_prefix
from vla.types import ActionChunk, Observation, RTCPrefix

RADIANS = moving(9, steps=4).embodiment
DEGREES = in_degrees(moving(9, steps=4)).embodiment


class Still:
    """Stays where it is, a tenth of each component's range further."""

    def __init__(self, body: Embodiment, data: DataSummary | None = None) -> None:
        self.embodiment, self.data = body, data or DataSummary()
        self.further = (np.array(body.action_high) - np.array(body.action_low)) / 10

    def reset(self) -> None: ...

    def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk | None:
        rows = np.stack([observation.state, observation.state + self.further])
        before = () if prefix is None else (prefix.committed,)
        after = () if prefix is None or prefix.leftover is None else (prefix.leftover,)
        return ActionChunk(np.concatenate([*before, rows, *after]), observation.time, 0.1)


class StillForAll(Still, RowByRow):
    guides = True


@pytest.mark.parametrize(("there", "here"), [(DEGREES, RADIANS), (RADIANS, DEGREES)])
def test_degrees_drive_a_robot_in_radians_and_back(there: Embodiment, here: Embodiment) -> None:
    state = np.array(here.action_low) * 0.7 + np.array(here.action_high) * 0.3
    seen = Observation({}, state, "", 1.0)
    inner = StillForAll(there)
    policy = adapt(inner, here, None, {})
    assert isinstance(policy, BatchPolicy) and guides(policy) and takes_prefix(policy) and policy.embodiment == here
    expected = np.stack([state, state + Still(here).further])
    chunk = policy.predict(seen)
    assert chunk is not None
    np.testing.assert_allclose(chunk.actions, expected, atol=1e-9)
    (guided,) = policy.predict_batch([seen], prefix=RTCPrefix(expected[None, :1], expected[None, 1:]))
    assert guided is not None
    np.testing.assert_allclose(guided.actions, [expected[0], *expected, expected[1]], atol=1e-9)
    assert not isinstance(adapt(Still(there), here, None, {}), BatchPolicy)


def test_what_is_known_of_the_data_is_converted() -> None:
    low, high = np.array(DEGREES.action_low), np.array(DEGREES.action_high)
    region = StartRegion(tuple(low), tuple((low + high) / 2), tuple(high), {"front": "x"})
    known = DataSummary((tuple(low), tuple(high)), (tuple(low), tuple(high)), region)
    policy = adapt(Still(DEGREES, known), RADIANS, None, {})
    assert isinstance(policy, ConvertedPolicy) and policy.data.start is not None and policy.data.action is not None
    np.testing.assert_allclose(policy.data.action, [RADIANS.action_low, RADIANS.action_high], atol=1e-9)
    np.testing.assert_allclose(policy.data.start.low, RADIANS.action_low, atol=1e-9)
    assert policy.data.start.images == {"front": "x"}
    assert DataSummary.from_dict(policy.data.to_dict()) == policy.data


def test_components_without_units_are_not_converted() -> None:
    plain = tuple(name.replace(" [deg]", "") for name in DEGREES.action)
    body = replace(DEGREES, state=plain, action=plain, action_state=(), grippers=())
    with pytest.raises(InputError, match="does not match"):
        adapt(Still(body), RADIANS, None, {})


@pytest.mark.parametrize("factor", [180 / np.pi, np.pi / 180])
def test_data_in_other_units_than_the_robot_are_refused(factor: float) -> None:
    """A policy of LeRobot names no units: its statistics show them."""
    body = RADIANS
    ends = [factor * 0.8 * np.array(end) for end in (body.action_low, body.action_high)]
    other = DataSummary(action=(tuple(ends[0]), tuple(ends[1])))
    with pytest.raises(InputError, match=r"the units differ; for a SO-101 set robot.units"):
        adapt(Still(body, other), body, None, {})


@pytest.mark.parametrize("share", [0.05, 0.5, 1.0, 1.5])
def test_data_of_the_robot_s_own_range_are_not(share: float) -> None:
    """Nor where one joint hardly moved."""
    body = RADIANS
    low, high = (share * np.array(end) for end in (body.action_low, body.action_high))
    low[0], high[0] = 0.1, 0.1001
    adapt(Still(body, DataSummary(action=(tuple(low), tuple(high)))), body, None, {})


def test_a_robot_that_hardly_moved_is_not_taken_for_one_in_radians() -> None:
    """A short recording in degrees, of angles that no joint could have in radians."""
    low, high = np.array(DEGREES.action_high) - 0.5, np.array(DEGREES.action_high)
    adapt(Still(DEGREES, DataSummary(action=(tuple(low), tuple(high)))), DEGREES, None, {})

"""What counts as motion in an episode."""

from __future__ import annotations

import numpy as np
import pytest

from vla.recording.session_end import Motion

START = np.array([0.0, -1.2, 1.0, 0.8, 0.0, 0.5])


@pytest.mark.parametrize(
    ("states", "targets", "moved"),
    [
        ([0.0, 0.004, -0.004], [0.0, 0.004, 0.0], False),
        ([0.0, 0.02, 0.04], [0.0, 0.0, 0.0], False),
        ([0.0, 0.0, 0.0], [0.0, 0.02, 0.04], False),
        ([0.0, 0.0, 0.04], [0.0, 0.04, None], True),
    ],
)
def test_motion_is_commanded_and_measured(states: list[float], targets: list[float | None], moved: bool) -> None:
    motion = Motion()
    assert not motion.moved
    for state, target in zip(states, targets, strict=True):
        motion.add(START + state * np.eye(6)[2], None if target is None else START + target * np.eye(6)[2])
    assert motion.moved == moved

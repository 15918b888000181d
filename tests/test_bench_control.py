"""Our control loop and LeRobot's on the emulated arm, and what is read off its bus."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from so101_checkpoints import so101_model

from vla.benchmarks import control
from vla.benchmarks.control_goals import measure, read_goals
from vla.errors import InputError
from vla.models.vla import VLA
from vla.robots.feetech_emulator.servo import TICK


def test_an_even_line_is_measured_as_one() -> None:
    time, rate = np.arange(100) / 50, 0.3
    goals = np.stack([rate * time, np.zeros(100)], axis=1)
    found = measure(time + 7, goals, 50.0, 0.5, 1.5)
    assert found["writes/s"] == pytest.approx(50)
    assert found["p50 ms"] == pytest.approx(20) and found["max ms"] == pytest.approx(20)
    assert found["missed %"] == found["repeated %"] == 0
    assert found["jitter p99 ms"] == pytest.approx(0, abs=1e-9)
    assert found["jump rad"] == pytest.approx(rate / 50) and found["rad/s"] == pytest.approx(rate)
    assert found["rad/s2"] == pytest.approx(0, abs=1e-9)


def test_gaps_repeats_and_jumps_are_seen() -> None:
    time = np.delete(np.arange(101) / 50, [40, 41, 42])
    goals = np.zeros((len(time), 1))
    goals[70:] = 0.1
    found = measure(time, goals, 50.0, 0.0, 9.0)
    assert found["missed %"] == pytest.approx(3) and found["max ms"] == pytest.approx(80)
    assert found["repeated %"] == pytest.approx(100 * 96 / 97) and found["jump rad"] == pytest.approx(0.1)
    assert found["rad/s"] == pytest.approx(1) and found["rad/s2"] == pytest.approx(10)


def test_a_log_is_read_from_when_every_servo_has_a_goal(tmp_path: Path) -> None:
    lines = [{"t": 1.0, "goals": {"1": 10}}, {"t": 2.0, "goals": {"2": 20}}, {"t": 3.0, "goals": {"1": 11}}]
    (tmp_path / "log").write_text("".join(json.dumps(line) + "\n" for line in lines))
    time, goals = read_goals(tmp_path / "log")
    np.testing.assert_array_equal(time, [2, 3])
    np.testing.assert_allclose(goals, TICK * np.array([[10, 20], [11, 20]]))
    with pytest.raises(InputError, match="more seconds"):
        measure(time, goals, 50.0, 0.0, 9.0)


@pytest.mark.slow  # four arms, and LeRobot's command twice: each takes some ten seconds to start
@pytest.mark.timeout(600)
def test_every_contestant_is_measured_on_the_same_bus() -> None:
    table = control.bench_control(2.0, (50.0,))
    assert [row["contestant"] for row in table.rows] == [*control.CONTESTANTS, *control.LOADED]
    for row in table.rows:
        figures = [value for value in row.values() if not isinstance(value, str)]
        assert np.isfinite(figures).all() and row["writes/s"] > 0
        assert row["ended"].startswith("done")


def test_success_lost_to_a_late_answer_is_that_of_the_same_scenes(
    tmp_path: Path, make_model: Callable[..., VLA]
) -> None:
    so101_model(make_model(robot=False)).save_pretrained(tmp_path / "demo")
    target = control.success_lost(tmp_path / "demo", episodes=2)
    assert (target.value, target.target, target.met) == (0.0, 0.05, True)  # of random weights neither succeeds


def test_the_log_has_what_the_motors_were_told(tmp_path: Path) -> None:
    """Nothing is lost when the arm ends, and the goals are the commands to an encoder step."""
    sent = np.clip(np.linspace(0, 0.5, 80)[:, None] * np.linspace(0.5, 1, 6), control.LOW, control.HIGH)
    with control.emulated(tmp_path), control.arm(tmp_path) as robot:
        for command in sent:
            robot.command(command)
        robot.state()  # answered after all that was written before it
    time, goals = (each[1:] for each in read_goals(tmp_path / control.LOG))  # the first: where torque came on
    assert len(time) == len(sent) and (np.diff(time) >= 0).all()
    np.testing.assert_allclose(goals - goals[0], sent - sent[0], atol=2 * TICK)

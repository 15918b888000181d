"""A camera that dies while the emulated arm runs, read by LeRobot's own camera class."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest
from emulated_arms import connected, emulated, free_port, make

from vla.commands.so101_sim import obey
from vla.control.config import LoopConfig
from vla.control.loop import ControlLoop
from vla.control.stop import EmergencyStop
from vla.control.thread_inference import ThreadInference
from vla.control.tick import Tick
from vla.policies.hold import HoldPolicy
from vla.robots.feetech_emulator.cameras import CameraStream


@pytest.mark.parametrize("hz", [10, pytest.param(30, marks=pytest.mark.slow)])
def test_a_camera_killed_in_mid_run_ends_it_and_is_named(
    tmp_path: Path,
    hz: int,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # put back at the end
    times: list[float] = []
    address = free_port()
    of = {"type": "zmq", "server_address": "127.0.0.1", "port": address, "width": 32, "height": 32, "fps": 15}
    cameras = {name: of | {"camera_name": name} for name in ("front", "wrist")}
    with emulated(tmp_path, "so101") as port, CameraStream(port.arm, address, 15) as stream:
        robot = make(port, tmp_path, cameras=cameras, control_hz=hz)
        inference = ThreadInference(HoldPolicy(robot.embodiment))

        def kill(tick: Tick) -> None:
            times.append(tick.time)
            if tick.time > times[0] + 1.0 and "wrist" not in stream.dead:
                obey(port, "blind wrist", stream)

        with connected(robot), caplog.at_level(logging.ERROR):
            config = LoopConfig(hz=hz, camera_timeout=1.0, invalid=None)
            loop = ControlLoop(robot, inference, config, stop=EmergencyStop(), watch=kill, connect=False)
            stats = loop.run("wait", 30.0)
        inference.close()
    assert stats.outcome == "robot" and "camera wrist" in stats.reason
    assert 2.0 < stats.seconds < 6.0
    assert [record.name for record in caplog.records] == ["vla.robots.lerobot_adapter.connect"]
    assert "Traceback" not in capfd.readouterr().err

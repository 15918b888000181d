"""`vla so101-sim`: what it offers is there for LeRobot's own port and camera."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_arms import free_port

from vla.commands.so101_sim import obey
from vla.envs.make import make_env
from vla.envs.scene import TableScene
from vla.errors import InputError
from vla.robots.feetech_emulator.arm import ServoArm
from vla.robots.feetech_emulator.port import ServoPort


def connected(config: Any) -> Any:
    """LeRobot reads the calibration without a second try; on a busy machine the arm may answer too late for it."""
    from lerobot.robots.so_follower import SO101Follower

    for _ in range(10):
        robot = SO101Follower(config)
        try:
            robot.connect(calibrate=False)
        except (ConnectionError, RuntimeError, IndexError):  # not all in time; a late answer taken for the next one
            if robot.bus.is_connected:
                robot.bus.disconnect(disable_torque=False)
            for camera in robot.cameras.values():
                if camera.is_connected:
                    camera.disconnect()
        else:
            return robot
    raise AssertionError("the arm does not answer")


def wait_for_a_picture(port: int) -> None:
    """LeRobot gives up after a second without one, and then closes the socket that its thread still reads from."""
    import zmq

    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt_string(zmq.SUBSCRIBE, "")
        socket.connect(f"tcp://127.0.0.1:{port}")
        assert socket.poll(60_000), "no picture"


def test_lerobot_moves_the_arm_and_sees_it(tmp_path: Path) -> None:
    from lerobot.cameras.zmq import ZMQCameraConfig
    from lerobot.robots.so_follower import SO101FollowerConfig

    zmq = free_port()
    command = [sys.executable, "-m", "vla", "so101-sim", f"out={tmp_path / 'arm'}", f"camera_port={zmq}"]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
        ExitStack() as stack,
    ):
        stack.callback(process.kill)
        assert process.stdout and process.stdin
        printed = ""
        while "ctrl-C" not in printed:
            line = process.stdout.readline()
            assert line, printed
            printed += line
        assert f"--robot.port={tmp_path / 'arm' / 'port'}" in printed
        wait_for_a_picture(zmq)
        # Below the two seconds that LeRobot waits for the thread of a camera before it closes its socket.
        cameras = {
            name: ZMQCameraConfig("127.0.0.1", zmq, camera_name=name, width=96, height=96, fps=30, timeout_ms=1500)
            for name in ("front", "wrist")
        }
        config = SO101FollowerConfig(
            port=str(tmp_path / "arm" / "port"), id="so101", calibration_dir=tmp_path / "arm", num_read_retries=5
        )
        config.cameras = cameras
        robot = connected(config)
        try:
            seen = robot.get_observation()
            robot.send_action({"shoulder_pan.pos": 10.0})
        finally:
            robot.disconnect()
        env = make_env("pick", image_size=96)
        drawn = env.reset(seed=0)[0]["images"]["front"].astype(float)
        env.close()
        assert seen["front"].shape == seen["wrist"].shape == (96, 96, 3)
        # The arm has moved, but red is where red was, and blue where blue was.
        assert np.abs(seen["front"] - drawn).mean() < np.abs(seen["front"][..., ::-1] - drawn).mean()
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=20)
        assert process.returncode == 0 and "ended" in rest
    assert not (tmp_path / "arm" / "port").exists()


def test_faults_by_their_names(tmp_path: Path) -> None:
    scene = TableScene(32)
    scene.reset()
    with ServoPort(ServoArm(scene), tmp_path / "port") as port:
        for line in ("mute 3", "corrupt 0.5", "drop 0.25", "slow 0.02", "overload 2", "", "unplug", "plug"):
            obey(port, line)
        faults = port.bus.faults
        assert (faults.mute, faults.corrupt, faults.drop, faults.delay) == ({3}, 0.5, 0.25, 0.02)
        obey(port, "heal")
        assert not faults.mute and faults.corrupt == faults.drop == faults.delay == 0
        for wrong in ("mute 7", "mute", "corrupt 2", "slow -1", "slow x", "burn", "blind front"):
            with pytest.raises(InputError, match="known: mute"):
                obey(port, wrong)
    scene.close()

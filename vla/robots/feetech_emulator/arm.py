"""The simulated SO-101 with six emulated servos."""

from __future__ import annotations

import threading

import numpy as np
from jaxtyping import Float

from vla.common.mujoco_gl import mujoco
from vla.envs.arm import JOINTS
from vla.envs.scene import TableScene
from vla.robots.feetech_emulator.servo import TICKS, Register, Servo

MOUNTS = (137, -261, 94, -58, 203, -310)
"""Mounting offset of each servo horn from the joint's zero [encoder steps], as in a real assembly."""
Calibration = dict[str, dict[str, int]]


class ServoArm:
    """The first arm of a scene on the table, driven by servos 1 to 6 in the order of its joints.

    `lock` guards the simulation's data. While `hand` is set (6 joints [rad]), joints without torque are held there, as
    by hand. One thread calls `step`.
    """

    def __init__(self, scene: TableScene) -> None:
        self.scene, self.lock = scene, threading.Lock()
        self.servos = tuple(Servo(i, mount) for i, mount in enumerate(MOUNTS, 1))
        self.hand: Float[np.ndarray, "6"] | None = None
        self._torque = scene.model.actuator_forcerange[: len(JOINTS), 1].copy()
        self.dt = float(scene.model.opt.timestep)
        self._measure()

    @property
    def joints(self) -> Float[np.ndarray, "6"]:
        """The joint positions [rad]."""
        return self.scene.data.qpos[: len(JOINTS)].copy()

    def step(self) -> None:
        """Advances the simulation by one step of `dt` [s]."""
        model, data = self.scene.model, self.scene.data
        with self.lock:
            for i, servo in enumerate(self.servos):
                torque = min(servo.max_torque, self._torque[i])
                model.actuator_forcerange[i] = -torque, torque
                if servo.torque:
                    data.ctrl[i] = servo.advance(self.dt)
                elif self.hand is not None:
                    data.qpos[i], data.qvel[i] = self.hand[i], 0.0
            mujoco.mj_step(model, data)
            self._measure()

    def _measure(self) -> None:
        data = self.scene.data
        for i, servo in enumerate(self.servos):
            servo.measure(float(data.qpos[i]), float(data.qvel[i]), float(data.actuator_force[i]), self.dt)

    def calibrate(self) -> Calibration:
        """Calibrates like LeRobot: writes the servos' EEPROM and power-cycles them.

        The middle of each range is the joint's zero, except for the gripper, where it is the middle between its stops.

        Returns:
            The content of LeRobot's calibration file.
        """
        calibration: Calibration = {}
        limits = self.scene.model.actuator_ctrlrange[: len(JOINTS)]
        for name, servo, (low, high) in zip(JOINTS, self.servos, limits, strict=True):
            middle = round((low + high) / 2 / (2 * np.pi) * TICKS)
            offset = servo.mount + middle + 1
            servo.set(Register.HOMING_OFFSET, offset)
            range_min, range_max = servo.to_position(float(low)), servo.to_position(float(high))
            servo.set(Register.MIN_POSITION, range_min)
            servo.set(Register.MAX_POSITION, range_max)
            servo.save()
            servo.power_on()
            calibration[name] = {
                "id": servo.id, "drive_mode": 0, "homing_offset": offset, "range_min": range_min, "range_max": range_max
            }  # fmt: skip
        self._measure()
        return calibration

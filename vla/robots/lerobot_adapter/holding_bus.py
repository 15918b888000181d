"""LeRobot's Feetech bus, with servos that hold where they stand when their torque comes on."""

from __future__ import annotations

from lerobot.motors.feetech import FeetechMotorsBus

from vla.robots.lerobot_adapter.servos import MODE, POSITION_MODE, Servo


class HoldingBus(FeetechMotorsBus):
    """LeRobot's driver enables torque at whatever goal a servo last had, to which it then jumps."""

    def enable_torque(self, motors: int | str | list[str] | None = None, num_retry: int = 0) -> None:
        for servo in (Servo(self, motor) for motor in self._get_motors_list(motors)):
            if servo.demand(MODE, 1)[0] == POSITION_MODE:
                servo.hold()
            super().enable_torque(servo.motor, num_retry=num_retry)

    @classmethod
    def like(cls, bus: FeetechMotorsBus) -> HoldingBus:
        """A bus with the port, motors and calibration of `bus`, which is not connected."""
        return cls(bus.port, bus.motors, bus.calibration, bus.protocol_version)

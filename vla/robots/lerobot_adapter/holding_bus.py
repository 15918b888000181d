"""LeRobot's Feetech bus, with servos that hold their current position when torque is enabled."""

from __future__ import annotations

from lerobot.motors.feetech import FeetechMotorsBus

from vla.robots.lerobot_adapter.servos import MODE, POSITION_MODE, Servo


class HoldingBus(FeetechMotorsBus):
    """A bus whose servos hold their position when torque is enabled; with LeRobot's driver they jump to an old goal."""

    def enable_torque(self, motors: int | str | list[str] | None = None, num_retry: int = 0) -> None:
        """Enables torque and holds the current position."""
        for servo in (Servo(self, motor) for motor in self._get_motors_list(motors)):
            if servo.read_required(MODE, 1)[0] == POSITION_MODE:
                servo.hold()
            super().enable_torque(servo.motor, num_retry=num_retry)

    @classmethod
    def like(cls, bus: FeetechMotorsBus) -> HoldingBus:
        """A bus that is not connected, with the port, motors and calibration of `bus`."""
        return cls(bus.port, bus.motors, bus.calibration, bus.protocol_version)

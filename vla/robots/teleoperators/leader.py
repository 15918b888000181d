"""LeRobot's SO-101 leader: an arm without torque that an operator moves by hand."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from vla.robots.lerobot_adapter.connect import clear, connect, disconnect
from vla.robots.lerobot_adapter.robot import so101_units
from vla.robots.robot import RobotFault
from vla.robots.teleoperators.teleoperator import Jog


class Leader:
    """Reads the joints of the leader, in the units of `so101`.

    Connecting raises InputError for an arm that is not calibrated, and RobotFault if it does not answer.

    Args:
        port: The serial port.
        id: Name of LeRobot's calibration file.
        calibration_dir: Its folder. None: LeRobot's default.
    """

    def __init__(self, port: str, id: str, calibration_dir: str | None) -> None:
        from lerobot.teleoperators.so_leader import SO101Leader, SO101LeaderConfig

        folder = None if calibration_dir is None else Path(calibration_dir)
        # No retries: the operator keeps moving, and the next step reads again.
        self._leader: Any = SO101Leader(SO101LeaderConfig(port=port, id=id, calibration_dir=folder, num_read_retries=0))
        self._keys, scale, offset = so101_units()
        self._scale, self._offset = np.array(scale), np.array(offset)

    def __enter__(self) -> Leader:
        connect(self._leader, "so101_leader")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        disconnect(self._leader)

    def read(self) -> Jog:
        """Reads the joints. Raises RobotFault, which is transient unless the port is disconnected."""
        try:
            values = self._leader.get_action()
        except Exception as error:
            clear(self._leader.bus)
            transient = isinstance(error, ConnectionError | TimeoutError)
            raise RobotFault(f"the leader does not answer: {error}", transient=transient) from error
        joints = (np.array([values[key] for key in self._keys]) - self._offset) / self._scale
        return Jog(joints=tuple(joints.tolist()))

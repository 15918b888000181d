"""LeRobot plugin: models of vla as policies, and its simulated SO-101 as an environment.

LeRobot imports it at the start of a command; heavy modules are imported when a policy is made.
"""

import sys
from types import TracebackType

from lerobot_policy_vla.configuration_vla import VlaConfig
from lerobot_policy_vla.environment_vla import VlaEnvConfig
from vla.errors import InputError

__all__ = ["VlaConfig", "VlaEnvConfig"]

_report = sys.excepthook


def _report_input_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints invalid input in one line, as `vla` does; LeRobot's commands would print a traceback."""
    if isinstance(error, InputError):
        print(f"error: {error}", file=sys.stderr)
    else:
        _report(kind, error, trace)


sys.excepthook = _report_input_error

"""Health of the servos: readings, warnings, and faults that end the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

PERIOD = 0.05
"""Interval between two readings [s]; a reading covers one servo."""
MIN_TIME = 0.001
"""Remaining time of a tick [s] below which no servo is read."""
SHARE = 0.5
"""Fraction of the remaining time of a tick that a reading may take."""
WARM, SAG = 8.0, 0.5
"""Distance to the limits of temperature [degrees C] and voltage [V] at which warnings start."""
CLEAR = "`vla robot clear` with the same robot options"
CURES = {
    "overload": f"take the load off it, then {CLEAR}",
    "overcurrent": f"take the load off it, then {CLEAR}",
    "overheat": f"let it cool down, then {CLEAR}",
    "voltage": "check the power supply",
    "angle": "its encoder has failed: switch the arm off and on again",
}
"""Remedy for each error flag of a Feetech servo."""


@dataclass(frozen=True)
class ServoLimits:
    """Limits configured in a servo; infinite if not set.

    Temperature is in [degrees C] and voltage in [V]. `load` is the fraction of its torque above which the timer of its
    overload protection runs.
    """

    temperature: float = math.inf
    low_voltage: float = -math.inf
    high_voltage: float = math.inf
    load: float = math.inf


@dataclass(frozen=True)
class Finding:
    """A problem of a servo. `kind` identifies the problem. If `ends` is set, it ends the run; else it is a warning."""

    kind: str
    message: str
    ends: bool


@dataclass(frozen=True)
class ServoHealth:
    """One reading of a servo.

    `load` is the fraction of its torque, voltage is in [V], temperature in [degrees C], and `flags` are keys of CURES.
    """

    servo: str
    load: float
    voltage: float
    temperature: float
    flags: tuple[str, ...]
    limits: ServoLimits

    def findings(self) -> list[Finding]:
        """The problems of the servo; empty if it is healthy."""
        limits, found = self.limits, []
        for flag in self.flags:
            found.append(Finding(flag, f"{self.servo} reports {flag}: {CURES[flag]}", True))
        if self.temperature >= limits.temperature - WARM:
            hot = self.temperature >= limits.temperature
            cure = f"let it cool down to {limits.temperature - WARM:g} °C"
            text = f"{self.servo} is at {self.temperature:g} °C, its limit is {limits.temperature:g} °C: {cure}"
            found.append(Finding("hot" if hot else "warm", text, hot))
        if not limits.low_voltage + SAG <= self.voltage <= limits.high_voltage - SAG:
            out = not limits.low_voltage <= self.voltage <= limits.high_voltage
            allowed = f"it takes {limits.low_voltage:g} to {limits.high_voltage:g} V"
            text = f"{self.servo} has {self.voltage:g} V, {allowed}: {CURES['voltage']}"
            found.append(Finding("no power" if out else "power", text, out))
        if abs(self.load) > limits.load:
            text = (
                f"{self.servo} exerts {abs(self.load):.0%} of its torque and switches off where it stays "
                f"above {limits.load:.0%}: take the load off it"
            )
            found.append(Finding("load", text, False))
        return found


@runtime_checkable
class HealthReporting(Protocol):
    """A robot whose servos report their health."""

    def health(self, seconds: float) -> ServoHealth | None:
        """Reads the next servo in turn; None if it does not answer within `seconds`. Never raises."""


class HealthMonitor:
    """Reads the servos of a robot in turn, in the remaining time of the ticks.

    A finding counts if two successive readings of the servo agree: a corrupted answer can look valid, and a short peak
    of load is harmless. After a first finding that would end the run, servos are read in every tick. `warn` is called
    once per servo and kind of warning.
    """

    def __init__(self, robot: HealthReporting, warn: Callable[[str], None]) -> None:
        self._robot, self._warn, self._due = robot, warn, -math.inf
        self.temperatures: dict[str, float] = {}
        """Last measured temperature of each servo [degrees C]."""
        self._before: dict[str, set[str]] = {}
        self._warned: set[tuple[str, str]] = set()
        self._suspects: set[str] = set()

    def check(self, now: float, deadline: float) -> str | None:
        """Reads one servo if a reading is due, within SHARE of the time until `deadline` [s, same clock as `now`].

        Returns:
            Why the run must end, or None.
        """
        if now < self._due or deadline - now < MIN_TIME:
            return None
        self._due = now if self._suspects else now + PERIOD
        if (health := self._robot.health(SHARE * (deadline - now))) is None:
            return None
        self.temperatures[health.servo] = health.temperature
        found = health.findings()
        self._suspects.discard(health.servo)
        if any(one.ends for one in found):
            self._suspects.add(health.servo)
            self._due = now
        confirmed = [one for one in found if one.kind in self._before.get(health.servo, set())]
        self._before[health.servo] = {one.kind for one in found}
        for finding in confirmed:
            if finding.ends:
                return finding.message
            if (warning := (health.servo, finding.kind)) not in self._warned:
                self._warned.add(warning)
                self._warn(finding.message)
        return None

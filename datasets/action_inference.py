"""Infers the action modes of data that do not state them, and reports the evidence. Unclear data are an error.

Component names are used only to order the state components to compare, to detect grippers (whose actions are not
converted) and to recognize roll, pitch and yaw as one rotation (`vla.datasets.rotation_evidence`). All three are
reported and can be overridden.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from vla.common.rotations import components_of
from vla.datasets.action_evidence import Finding, Steps, examine, examine_quaternion
from vla.datasets.rotation_evidence import detect_rotations
from vla.embodiment import ABSOLUTE, ACTION_MODES, Embodiment, Rotation
from vla.errors import InputError

Numbers = Iterable[tuple[Float[np.ndarray, "_t s"], Float[np.ndarray, "_t a"]]]
"""State and action of episodes."""
MOST_STEPS = 200_000
GRIPPER = ("grip", "jaw", "claw")


def infer_actions(
    body: Embodiment,
    numbers: Numbers,
    actions: str | Mapping[str, str] | None = None,
    grippers: Sequence[str] | None = None,
    rotations: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Embodiment, list[str]]:
    """The embodiment with the inferred action modes, and a report as lines of text.

    Args:
        body: the embodiment without action modes.
        numbers: the states and actions to examine. Episodes with non-finite values are skipped; at most about
            `MOST_STEPS` steps are used.
        actions: overrides the mode of all components but the grippers, or of single components by name.
        grippers: overrides which components are grippers.
        rotations: overrides the rotations, {representation: components} (`vla.embodiment.ROTATIONS`).

    Raises:
        InputError: a name or mode is unknown; or the modes cannot be inferred and `actions` does not set them.
    """
    _check_modes(body, actions)
    if grippers is None:
        grippers = [name for name in body.action if any(word in name.lower() for word in GRIPPER)]
    if unknown := sorted(set(grippers) - set(body.action)):
        raise InputError(f"grippers: there is no action {unknown[0]!r}: there are {', '.join(body.action)}")
    specified = {name: _positions(body, name, components) for name, components in (rotations or {}).items()}
    if both := [body.action[i] for at in specified.values() for i in at if body.action[i] in grippers]:
        raise InputError(f"{both[0]} cannot be a gripper and part of a rotation: grippers=[…] names the grippers")
    episodes = _limited(numbers)
    if not episodes:
        raise InputError(f"{body.name}: no episode has finite states and actions to infer the action modes from")
    steps = Steps.of(episodes, body.control_hz)
    findings = _examine(body, steps)
    findings = [_override(body, f, i, actions, body.action[i] in grippers) for i, f in enumerate(findings)]
    findings = _fill_from_others(body, findings)
    inferred = replace(
        body,
        action_mode=tuple(str(f.mode) for f in findings),
        action_state=tuple(
            body.state[f.state] if f.mode == ABSOLUTE and f.state is not None else None for f in findings
        ),
        action_turn=tuple(_turn(episodes, i) if f.mode == ABSOLUTE else 0.0 for i, f in enumerate(findings)),
        grippers=tuple(grippers),
        rotations=(),
    )
    inferred, lines = _rotations(inferred, [action for _, action in episodes], None if rotations is None else specified)
    return inferred, [*_report(inferred, findings), *lines]


def _examine(body: Embodiment, steps: Steps) -> list[Finding]:
    findings = [examine(steps, i, *_candidates(body, i)) for i in range(len(body.action))]
    for start in range(len(findings) - 3):
        at = range(start, start + 4)
        if any(findings[i].mode is None for i in at) and (quaternion := examine_quaternion(steps, at)):
            findings[start : start + 4] = quaternion
    return findings


def _check_modes(body: Embodiment, actions: str | Mapping[str, str] | None) -> None:
    modes = {} if actions is None else {body.name: actions} if isinstance(actions, str) else dict(actions)
    if not isinstance(actions, str) and (unknown := sorted(set(modes) - set(body.action))):
        raise InputError(f"actions: there is no action {unknown[0]!r}: there are {', '.join(body.action)}")
    if bad := [mode for mode in modes.values() if mode not in ACTION_MODES]:
        raise InputError(f"actions are {', '.join(ACTION_MODES)}, not {bad[0]!r}")


def _limited(numbers: Numbers) -> list[tuple[Float[np.ndarray, "_t s"], Float[np.ndarray, "_t a"]]]:
    episodes, count = [], 0
    for state, action in numbers:
        if len(action) and np.isfinite(state).all() and np.isfinite(action).all():
            episodes.append((np.asarray(state, np.float64), np.asarray(action, np.float64)))
            count += len(action)
        if count >= MOST_STEPS:
            break
    return episodes


def _candidates(body: Embodiment, i: int) -> tuple[list[int], int]:
    """The state components, likeliest to measure action `i` first, and how many of them share its name or index."""
    first = [j for j, name in enumerate(body.state) if name == body.action[i]]
    if len(body.state) == len(body.action):
        first.append(i)
    return list(dict.fromkeys([*first, *range(len(body.state))])), len(set(first))


def _override(
    body: Embodiment, finding: Finding, i: int, actions: str | Mapping[str, str] | None, is_gripper: bool
) -> Finding:
    """Applies the user's mode to component `i`. A mode for all does not override the evidence for a gripper.

    An absolute component is measured by the state component that it tracks, or else by the one of its name.
    """
    name = body.action[i]
    mode = actions if isinstance(actions, str) else (actions or {}).get(name)
    if mode is None or (isinstance(actions, str) and is_gripper and finding.mode is not None):
        return finding
    namesake = body.state.index(name) if name in body.state else None
    return Finding(mode, finding.state if finding.mode == mode == ABSOLUTE else namesake, "as specified")


def _fill_from_others(body: Embodiment, findings: Sequence[Finding]) -> list[Finding]:
    """Gives unclear components the mode of the clear ones in the same vector, or else of all clear ones."""
    findings = _fill_from_vector(body, findings)
    sure = {f.mode for f in findings if f.mode is not None and not f.is_weak and "switch" not in f.reason}
    likely = sure or {f.mode for f in findings if f.mode is not None}
    unclear = [name for name, f in zip(body.action, findings, strict=True) if f.mode is None]
    if unclear and all(f.reason.startswith("never moves") for f in findings if f.mode is None) and not likely:
        likely = {ABSOLUTE}
    if unclear and len(likely) != 1:
        evidence = "; ".join(f"{name} {f.reason}" for name, f in list(zip(body.action, findings, strict=True))[:8])
        raise InputError(
            f"the data of {body.name} do not show whether its actions are absolute, deltas or velocities: set "
            f"actions=absolute, actions=delta or actions=velocity, or each one: 'actions={{\"{unclear[0]}\": delta}}' "
            f"({evidence})"
        )
    return [_as_others(f, likely) for f in findings]


def _fill_from_vector(body: Embodiment, findings: Sequence[Finding]) -> list[Finding]:
    vectors = [name.partition("[")[0].rstrip("0123456789_. ") for name in body.action]
    out = []
    for vector, finding in zip(vectors, findings, strict=True):
        modes = {f.mode for v, f in zip(vectors, findings, strict=True) if v == vector and f.mode is not None}
        out.append(_as_others(finding, modes) if len(modes) == 1 and vector else finding)
    return out


def _as_others(finding: Finding, modes: Collection[str | None]) -> Finding:
    if finding.mode is not None:
        return finding
    return replace(
        finding, mode=next(iter(modes)), reason=f"{finding.reason}, assumed to be like the others", is_weak=True
    )


def _turn(episodes: Sequence[tuple[Float[np.ndarray, "_t s"], Float[np.ndarray, "_t a"]]], i: int) -> float:
    """The full turn of an angle that wraps, that is, jumps by nearly a turn between two steps; 0 if it does not."""
    jumps = [np.abs(np.diff(action[:, i])).max(initial=0.0) for _, action in episodes]
    largest, widest = max(jumps), float(max(np.ptp(action[:, i]) for _, action in episodes))
    reach = max(float(np.abs(action[:, i]).max()) for _, action in episodes)
    for turn in (2 * math.pi, 360.0):
        # Wrapped radians range from -pi to pi or from 0 to 2 pi; an angle that exceeds a turn does not wrap.
        if 0.9 * turn <= largest <= 1.001 * turn and widest <= 1.001 * turn and reach <= 1.001 * turn:
            return turn
    return 0.0


def _rotations(
    body: Embodiment, actions: Sequence[Float[np.ndarray, "_t a"]], rotations: Mapping[str, tuple[int, ...]] | None
) -> tuple[Embodiment, list[str]]:
    """The embodiment with the specified or detected rotations, and a line of text for each."""
    if rotations is not None:
        groups_by_name, origin = list(rotations.items()), "as specified"
    else:
        groups_by_name, origin = detect_rotations(body, actions), "rotations={} overrides this"
    groups, lines = [], []
    for representation, at in groups_by_name:
        measured = [body.measured_by[i] for i in at]
        state = tuple(j for j in measured if j is not None)
        groups.append(Rotation(tuple(at), representation, state if len(state) == len(at) else ()))
        lines.append(f"{', '.join(body.action[i] for i in at)} are a rotation, {representation} ({origin})")
    # The representation of a rotation defines how its angles wrap. All of its components are measured, or none.
    inside = {i for group in groups for i in group.action}
    unmeasured = {i for group in groups if not group.state for i in group.action}
    turns = tuple(0.0 if i in inside else turn for i, turn in enumerate(body.action_turn))
    states = tuple(None if i in unmeasured else name for i, name in enumerate(body.action_state))
    return replace(body, rotations=tuple(groups), action_turn=turns, action_state=states), lines


def _positions(body: Embodiment, representation: str, names: Sequence[str]) -> tuple[int, ...]:
    if unknown := [name for name in names if name not in body.action]:
        raise InputError(f"rotations: there is no action {unknown[0]!r}: there are {', '.join(body.action)}")
    if len(names) != (count := components_of(representation)):
        raise InputError(f"rotations: {representation} has {count} components, not {len(names)}")
    return tuple(body.action.index(name) for name in names)


def report_stated(body: Embodiment, by: str) -> list[str]:
    """The report on actions that are not inferred: one line per mode. `by` is the origin of the information."""
    modes = {
        mode: [n for n, m in zip(body.action, body.action_mode, strict=True) if m == mode] for mode in body.action_mode
    }
    lines = [f"actions are {mode}: {', '.join(names)} ({by})" for mode, names in modes.items()]
    return lines + ([f"grippers: {', '.join(body.grippers)}"] if body.grippers else [])


def _report(body: Embodiment, findings: Sequence[Finding]) -> list[str]:
    """One line per mode: its components, and each distinct reason with the first component that has it."""
    lines = []
    for mode in dict.fromkeys(body.action_mode):
        of_mode = [(name, f) for name, f in zip(body.action, findings, strict=True) if f.mode == mode]
        reasons = dict.fromkeys(f.reason.split(",")[0] for _, f in of_mode)
        first = "; ".join(
            f"{next(name for name, f in of_mode if f.reason.startswith(reason))} "
            f"{next(f.reason for _, f in of_mode if f.reason.startswith(reason))}"
            for reason in reasons
        )
        lines.append(f"actions are {mode}: {', '.join(name for name, _ in of_mode)} ({first})")
    turning = [f"{name} ({turn:.4g})" for name, turn in zip(body.action, body.action_turn, strict=True) if turn]
    if turning:
        lines.append(f"angles that wrap, by their jumps of a full turn: {', '.join(turning)}")
    if body.grippers:
        lines.append(f"grippers: {', '.join(body.grippers)} (grippers=[…] overrides this)")
    return lines

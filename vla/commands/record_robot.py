"""`vla record robot=…`: records demonstrations of an operator on an arm, in wall-clock time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from vla.commands.operation_checks import NO_INSTRUCTION, check_teleoperation, check_terminal
from vla.control.clock import NO_PRIORITY
from vla.control.config import LoopConfig, rate_for
from vla.control.events import EventLog
from vla.control.loop import ControlLoop
from vla.control.recording import Recording
from vla.control.stats import MET, ControlStats
from vla.control.status import Status
from vla.control.stop import EmergencyStop, stop_sources
from vla.control.thread_inference import ThreadInference
from vla.control.tick import Tick
from vla.datasets.episodes import EpisodeStore
from vla.datasets.open_folder import open_folder
from vla.envs.arm import JOINTS
from vla.errors import EXIT_CODES, Failure, InputError, Outcome
from vla.recording.session_end import UNMOVED, Motion, check_script_saved, print_episode_count
from vla.recording.zarr_recorder import ZarrRecorder
from vla.robots.robot import Robot
from vla.robots.teleoperators import gamepad, keyboard
from vla.robots.teleoperators.cartesian_jog import fingertip_solver
from vla.robots.teleoperators.devices import open_device
from vla.robots.teleoperators.keyboard import Keyboard
from vla.robots.teleoperators.leader import Leader
from vla.robots.teleoperators.operator import LASTS, Operator
from vla.robots.teleoperators.teleoperator import Event, Teleop
from vla.robots.teleoperators.terminal import Terminal

if TYPE_CHECKING:
    from vla.kinematics.solver import KinematicSolver

TIMEOUT = "done"
RETRY = (Event.DISCARD.value, Event.NEXT.value)
EXPECTED = (Event.QUIT.value, TIMEOUT, MET, Event.SAVE.value, *RETRY)
"""Reasons for the end of a run that are planned or decided by the operator."""
HELPS = {"gamepad": gamepad.HELP, "keyboard": keyboard.HELP}
END = "ctrl-C: stop the arm, and end"
KEYS = f"enter: begin; end and keep     backspace, r: discard, and again     q, {END}"


def record_robot(
    *,
    robot: Robot,
    teleop: str,
    instruction: str | None,
    episodes: int,
    seconds: float,
    pause: float | None,
    keep_unfinished: bool,
    leader_port: str | None,
    leader_id: str,
    leader_calibration_dir: str | None,
    joystick: str,
    script: str | None,
    stop_file: str | None,
    stop_gamepad: str | None,
    out: str,
    codec: str,
) -> None:
    """Records until the store holds the requested episodes of the instruction, or the operator quits.

    Before each episode is a pause in which the arm follows the operator and the scene is reset; scripted episodes have
    none and start with their first movement. An episode that the operator ends with enter, or in which a simulated task
    succeeds, is stored as a success; it is discarded if the arm did not move. An episode that reaches its time limit is
    stored as well. The control loop's safety filter limits the operator's commands, and the arm holds its pose after
    each episode.

    Args:
        robot: The arm.
        teleop: Input device: leader, gamepad, keyboard or script.
        instruction: Task of the episodes; None: that of the simulated scene.
        episodes: Number of episodes of the instruction in the complete store.
        seconds: Time limit of an episode [s].
        pause: Longest pause before an episode [s]; None: until enter.
        keep_unfinished: Stores an episode that a stop or a fault ends.
        leader_port: Serial port of the leader arm.
        leader_id: Name of the leader's calibration.
        leader_calibration_dir: Folder of the leader's calibration; None: that of LeRobot.
        joystick: Joystick device of the gamepad.
        script: File with one command per step.
        stop_file: File whose existence stops the arm.
        stop_gamepad: Joystick device whose buttons stop the arm.
        out: The store.
        codec: Image codec of a new store.

    Raises:
        InputError: Options do not fit each other, a device is not available, or the store has another embodiment
            (nothing moves in these cases), or a script saves no episode.
        Failure: The robot does not connect, or a fault or a stop ended the session; with a code of EXIT_CODES.
    """
    check_teleoperation(
        teleop=teleop,
        episodes=episodes,
        seconds=seconds,
        pause=pause,
        joystick=joystick,
        script=script,
        leader_port=leader_port,
    )
    if not instruction and not hasattr(robot, "instruction"):
        raise InputError(NO_INSTRUCTION)
    body = robot.embodiment
    config = LoopConfig(
        hz=rate_for(body.control_hz), execution="chunked", n_action_steps=1, max_observation_age_s=LASTS
    )
    with ExitStack() as stack:
        resumed = open_folder(out).exists("")
        if resumed:
            EpisodeStore.open(out).embodiment.check(body)
        device, solver = _device(teleop, robot, joystick, script, stack, leader_port, leader_id, leader_calibration_dir)
        terminal = stack.enter_context(Terminal(device.press if isinstance(device, Keyboard) else None))
        check_terminal(teleop, pause, is_open=terminal.is_open)
        store = stack.enter_context(EpisodeStore.open(out, "a") if resumed else EpisodeStore.create(out, body, codec))
        stop = EmergencyStop(stop_sources(stop_file, stop_gamepad, stack))
        stack.enter_context(stop.signals())
        stack.enter_context(robot)
        print(help_of(teleop, has_terminal=terminal.is_open))
        session = _RecordingSession(robot, Operator(device, body, solver, _show), terminal, stop, config, store)
        before, finished = len(store), session.count(instruction) >= episodes
        reason = ""
        try:
            wait = 0.0 if teleop == "script" else inf if pause is None else pause
            reason = session.run(teleop, instruction, episodes, seconds, wait, keep_unfinished)
        finally:
            print_episode_count(out, store, before, finished=finished)
        if teleop == "script" and reason == Event.QUIT.value:
            check_script_saved(out, store, before)
        if session.outcome is not None and reason and reason not in EXPECTED:
            raise Failure(f"the session ended: {reason}", EXIT_CODES[session.outcome])


def help_of(teleop: str, *, has_terminal: bool) -> str:
    """The controls of an operator with this device. Without a terminal, and for a script, only ctrl-C applies."""
    keys = KEYS if has_terminal and teleop != "script" else END
    return "\n".join([HELPS[teleop], keys] if teleop in HELPS else [keys])


def _device(
    teleop: str,
    robot: Robot,
    joystick: str,
    script: str | None,
    stack: ExitStack,
    port: str | None,
    id: str,
    calibration_dir: str | None,
) -> tuple[Teleop, KinematicSolver | None]:
    """The input device, and the arm's inverse kinematics for devices that move the fingertips."""
    joints = tuple(f"{joint} [rad]" for joint in JOINTS)
    if robot.embodiment.action != joints or robot.embodiment.state != joints:
        raise InputError(
            f"teleoperation needs the components of one SO-101 ({', '.join(joints)}), which the arm "
            f"{robot.embodiment.name} does not have"
        )
    if teleop != "leader":
        return open_device(teleop, joystick, script, stack), fingertip_solver()
    assert port is not None  # checked with the other options
    return stack.enter_context(Leader(port, id, calibration_dir)), None


@dataclass
class _RecordingSession:
    """The arm, its operator and the store of one recording session."""

    robot: Robot
    operator: Operator
    terminal: Terminal
    stop: EmergencyStop
    config: LoopConfig
    store: EpisodeStore
    outcome: Outcome | None = None
    """The outcome of the last run."""

    def run(self, teleop: str, instruction: str | None, episodes: int, seconds: float, pause: float, keep: bool) -> str:
        """Records the missing episodes; returns the reason for an early end, "" if all episodes are recorded."""
        scene, number = len(self.store), self.count(instruction)
        while number < episodes:
            self._reset_scene(scene)
            task = instruction or str(getattr(self.robot, "instruction", ""))
            print(f"episode {number + 1} of {episodes}: {task}{'; enter begins' * bool(pause)}", flush=True)
            reason = self._run(task, pause, None).reason if pause else TIMEOUT
            if reason in RETRY:
                continue
            if reason in (TIMEOUT, Event.SAVE.value):
                self._reset_scene(scene)
                print("  recording", flush=True)
                reason, stored = self._episode(task, seconds, keep, teleop=teleop, scene=scene)
                scene += stored or reason == Event.NEXT.value
                number += stored
            if reason not in (TIMEOUT, MET, Event.SAVE.value, *RETRY):
                print(f"ended: {reason}")
                return reason
        return ""

    def count(self, instruction: str | None) -> int:
        """The number of stored episodes of the instruction; None: of all."""
        return sum(instruction in (None, record.instruction) for record in self.store.records)

    def _reset_scene(self, scene: int) -> None:
        """Resets a simulated scene; a real one is reset by the operator."""
        if reset_scene := getattr(self.robot, "reset_scene", None):
            reset_scene(scene)

    def _episode(self, instruction: str, seconds: float, keep: bool, **info: object) -> tuple[str, bool]:
        """Records one episode; returns the reason for its end, and whether it was stored."""
        recording = Recording([ZarrRecorder(self.store, self.robot.embodiment)], len(self.robot.embodiment.action))
        task = {"task": self.robot.task} if hasattr(self.robot, "task") else {}
        recording.start(instruction, robot=type(self.robot).__name__, policy="operator", **task, **info)
        before, success, motion = len(self.store), False, Motion()

        def watch(tick: Tick) -> None:
            motion.add(tick.state, tick.sent)
            recording(tick)

        try:
            stats = self._run(instruction, seconds, watch)
            saved = stats.reason in (MET, Event.SAVE.value)
            success = saved and motion.moved
            keep = success or stats.reason == TIMEOUT or (keep and not saved and stats.reason not in RETRY)
        finally:
            recording.finish(success, keep)
        if recording.failed:
            raise InputError(f"the episode is not stored: {'; '.join(recording.failed)}")
        stored = len(self.store) > before
        result = f"{'kept' if stored else 'discarded'}: {recording.steps} steps, {stats.missed} missed deadlines"
        _show(UNMOVED if saved and not success else result)
        return stats.reason, stored

    def _run(self, instruction: str, seconds: float, watch: Callable[[Tick], None] | None) -> ControlStats:
        """Lets the arm follow the operator until an event or the time limit; then the arm holds its pose."""

        def operator_event() -> str | None:
            event = self.terminal.poll()
            return event.value if event else self.operator.end_reason

        def met() -> str | None:
            return MET if watch is not None and getattr(self.robot, "success", False) else None

        if self.terminal.poll() is Event.QUIT:  # other keys that were pressed earlier are ignored
            self.stop.trip(Event.QUIT.value)
        inference = ThreadInference(self.operator)
        try:
            stop = EmergencyStop([self.stop.poll, operator_event, met])
            events = EventLog((NO_PRIORITY,) if self.outcome else ())
            loop = ControlLoop(self.robot, inference, self.config, stop=stop, watch=watch, connect=False, events=events)
            with Status(events, line=False):
                stats = loop.run(instruction, seconds)
            self.outcome = stats.outcome
            return stats
        finally:
            inference.close()


def _show(line: str) -> None:
    print(f"  {line}", flush=True)

"""`vla record robot=…`: demonstrations of an operator, on an arm in wall-clock time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

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
from vla.errors import EXIT_CODES, Failure, InputError, Outcome, unknown
from vla.recording.session_end import UNMOVED, Motion, check_script_saved, print_episode_count
from vla.recording.zarr_recorder import ZarrRecorder
from vla.robots.robot import Robot
from vla.robots.teleoperators import gamepad, keyboard
from vla.robots.teleoperators.cartesian_jog import fingertip_solver
from vla.robots.teleoperators.devices import DEVICES, open_device
from vla.robots.teleoperators.keyboard import Keyboard
from vla.robots.teleoperators.leader import Leader
from vla.robots.teleoperators.operator import LASTS, Operator
from vla.robots.teleoperators.teleoperator import Event, Teleop
from vla.robots.teleoperators.terminal import Terminal

if TYPE_CHECKING:
    from vla.kinematics.solver import KinematicSolver

TIME = "done"
AGAIN = (Event.DISCARD.value, Event.NEXT.value)
DECIDED = (Event.QUIT.value, TIME, MET, Event.SAVE.value, *AGAIN)
"""Reasons that are the operator's, or as planned."""
HELPS = {"gamepad": gamepad.HELP, "keyboard": keyboard.HELP}
KEYS = "enter: begin; end and keep     backspace, r: discard, and again     q, ctrl-C: stop the arm, and end"


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
    """Records until the store `out` holds `episodes` of `instruction`, or the operator stops.

    Before each there is a pause, in which the arm follows the operator and the scene is reset: until enter, and at
    most `pause` [s]; a script has none, its episodes begin with their first movement. An episode that enter ends, or
    that meets a simulated task, is a success, and discarded if the arm has not moved in it; one that lasts
    `seconds` is kept too. One that a stop or a fault ends is kept if and only if `keep_unfinished`. The control loop's
    guard stands between the operator and the motors, and the arm holds after each.

    Raises InputError, before anything moves, for options that do not fit, a device that is not there, and a store of
    another embodiment; and for a script that keeps no episode. Raises Failure, with EXIT_CODES, where a robot does not
    connect, and where a fault or a stop other than the operator's quitting ended the session.
    """
    if episodes < 1 or seconds <= 0 or (pause is not None and pause < 0):
        raise InputError(f"episodes and seconds must be above 0, pause 0 or more: {episodes}, {seconds}, {pause}")
    if teleop == "script" and pause:
        raise InputError(f"pause={pause:g}: a script has no pause, its episodes begin with their first movement")
    if not instruction and not hasattr(robot, "instruction"):
        raise InputError("say what is demonstrated: instruction='pick up the red cube'")
    body = robot.embodiment
    config = LoopConfig(
        hz=rate_for(body.control_hz), execution="chunked", n_action_steps=1, max_observation_age_s=LASTS
    )
    with ExitStack() as stack:
        begun = open_folder(out).exists("")
        if begun:
            EpisodeStore.open(out).embodiment.check(body)
        device, solver = _device(teleop, robot, joystick, script, stack, leader_port, leader_id, leader_calibration_dir)
        terminal = stack.enter_context(Terminal(device.press if isinstance(device, Keyboard) else None))
        if teleop in ("leader", "keyboard") and not terminal.is_open and (teleop == "keyboard" or pause is None):
            raise InputError(f"teleop={teleop} needs a terminal for its keys; a leader can do with pause=SECONDS")
        store = stack.enter_context(EpisodeStore.open(out, "a") if begun else EpisodeStore.create(out, body, codec))
        stop = EmergencyStop(stop_sources(stop_file, stop_gamepad, stack))
        stack.enter_context(stop.signals())
        stack.enter_context(robot)
        print(*(help for name, help in HELPS.items() if name == teleop), KEYS, sep="\n")
        desk = _Desk(robot, Operator(device, body, solver, _show), terminal, stop, config, store)
        before = len(store)
        reason = ""
        try:
            wait = 0.0 if teleop == "script" else inf if pause is None else pause
            reason = desk.session(teleop, instruction, episodes, seconds, wait, keep_unfinished)
        finally:
            print_episode_count(out, store, before)
        if teleop == "script" and reason == Event.QUIT.value:
            check_script_saved(out, store, before)
        if desk.ended is not None and reason and reason not in DECIDED:
            raise Failure(f"the session ended: {reason}", EXIT_CODES[desk.ended])


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
    """What the operator holds, and the arm's kinematics for what moves the fingertips."""
    if teleop not in ("leader", *DEVICES):
        raise unknown("teleop", teleop, ("leader", *DEVICES))
    joints = tuple(f"{joint} [rad]" for joint in JOINTS)
    if robot.embodiment.action != joints or robot.embodiment.state != joints:
        raise InputError(f"teleoperation is of one SO-101; the arm {robot.embodiment.name} is another")
    if teleop != "leader":
        return open_device(teleop, joystick, script, stack), fingertip_solver()
    if port is None:
        raise InputError("teleop=leader needs leader_port=…, its serial port: `vla doctor` lists those that there are")
    return stack.enter_context(Leader(port, id, calibration_dir)), None


@dataclass
class _Desk:
    """Where the operator sits."""

    robot: Robot
    operator: Operator
    terminal: Terminal
    stop: EmergencyStop
    config: LoopConfig
    store: EpisodeStore
    ended: Outcome | None = None
    """How the last run did."""

    def session(
        self, teleop: str, instruction: str | None, episodes: int, seconds: float, pause: float, keep: bool
    ) -> str:
        """Why it ended: empty where all episodes are there."""
        scene, number = len(self.store), self._held(instruction)
        while number < episodes:
            self._lay(scene)
            told = instruction or str(getattr(self.robot, "instruction", ""))
            print(f"episode {number + 1} of {episodes}: {told}{'; enter begins' * bool(pause)}", flush=True)
            reason = self._run(told, pause, None).reason if pause else TIME
            if reason in AGAIN:
                continue
            if reason in (TIME, Event.SAVE.value):
                self._lay(scene)
                print("  recording", flush=True)
                reason, kept = self._episode(told, seconds, keep, teleop=teleop, scene=scene)
                scene += kept or reason == Event.NEXT.value
                number += kept
            if reason not in (TIME, MET, Event.SAVE.value, *AGAIN):
                print(f"ended: {reason}")
                return reason
        return ""

    def _held(self, instruction: str | None) -> int:
        return sum(instruction in (None, record.instruction) for record in self.store.records)

    def _lay(self, scene: int) -> None:
        """A simulated scene is laid here; a real one by the operator."""
        if reset_scene := getattr(self.robot, "reset_scene", None):
            reset_scene(scene)

    def _episode(self, told: str, seconds: float, keep: bool, **info: object) -> tuple[str, bool]:
        """Why it ended, and whether it was kept."""
        recording = Recording([ZarrRecorder(self.store, self.robot.embodiment)], len(self.robot.embodiment.action))
        task = {"task": self.robot.task} if hasattr(self.robot, "task") else {}
        recording.start(told, robot=type(self.robot).__name__, policy="operator", **task, **info)
        before, success, motion = len(self.store), False, Motion()

        def watch(tick: Tick) -> None:
            motion.add(tick.state, tick.sent)
            recording(tick)

        try:
            stats = self._run(told, seconds, watch)
            decided = stats.reason in (MET, Event.SAVE.value)
            success = decided and motion.moved
            keep = success or stats.reason == TIME or (keep and not decided and stats.reason not in AGAIN)
        finally:
            recording.finish(success, keep)
        if recording.failed:
            raise InputError(f"the episode is not stored: {'; '.join(recording.failed)}")
        kept = len(self.store) > before
        how = f"{'kept' if kept else 'discarded'}: {recording.steps} steps, {stats.missed} missed deadlines"
        _show(UNMOVED if decided and not success else how)
        return stats.reason, kept

    def _run(self, told: str, seconds: float, watch: Callable[[Tick], None] | None) -> ControlStats:
        """The arm follows the operator, until something is decided or the time is over; then it holds."""

        def said() -> str | None:
            event = self.terminal.poll()
            return event.value if event else self.operator.end_reason

        def met() -> str | None:
            return MET if watch is not None and getattr(self.robot, "success", False) else None

        if self.terminal.poll() is Event.QUIT:  # other keys from before do not count
            self.stop.trip(Event.QUIT.value)
        inference = ThreadInference(self.operator)
        try:
            stop, events = EmergencyStop([self.stop.poll, said, met]), EventLog((NO_PRIORITY,) if self.ended else ())
            loop = ControlLoop(self.robot, inference, self.config, stop=stop, watch=watch, connect=False, events=events)
            with Status(events, line=False):
                stats = loop.run(told, seconds)
            self.ended = stats.outcome
            return stats
        finally:
            inference.close()


def _show(line: str) -> None:
    print(f"  {line}", flush=True)

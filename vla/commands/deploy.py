"""`vla deploy`: runs a policy on a robot, or on a simulated robot in wall-clock time."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.commands.operation_checks import NO_INSTRUCTION, check_deploy
from vla.common.atomic import write_json
from vla.common.full_disk import explain_full_disk
from vla.control.adapt import adapt, adapted_line
from vla.control.camera_look import cameras_beside_training
from vla.control.config import LoopConfig, steps_of
from vla.control.events import EventLog
from vla.control.inference import PREFIXED, PolicyInfo, check_execution
from vla.control.loop import ControlLoop
from vla.control.probe import probe
from vla.control.process_inference import ProcessInference
from vla.control.recording import Recording
from vla.control.run_report import control_page
from vla.control.stats import MET
from vla.control.status import Status
from vla.control.status_page import status_page
from vla.control.stop import EmergencyStop, in_background, operator, stop_sources
from vla.control.tick import Tick
from vla.datasets.codecs import DEFAULT
from vla.datasets.episodes import EpisodeStore
from vla.datasets.open_folder import open_folder
from vla.embodiment import Embodiment
from vla.errors import EXIT_CODES, Failure, InputError
from vla.policies.data_summary import DataSummary
from vla.policies.load import policy_for
from vla.policies.policy import Policy, takes_prefix
from vla.recording.recorder import Recorder
from vla.recording.zarr_recorder import ZarrRecorder
from vla.robots.dry_run import DryRun
from vla.robots.robot import Robot, image_sizes

if TYPE_CHECKING:
    import rerun as rr

    from vla.control.stats import ControlStats

STORE, RRD, METRICS, CAMERAS = "episodes.zarr", "episode.rrd", "deploy.json", "cameras.png"


def deploy(
    *,
    robot: Robot,
    policy: str,
    instruction: str | None,
    seconds: float,
    loop: Mapping[str, Any],
    lost: float,
    stop_file: str | None,
    stop_gamepad: str | None,
    confirm: bool | None,
    dry_run: bool,
    view: bool,
    status_port: int | None,
    out: str,
    record: bool,
    codec: str | None,
    kinematics: Mapping[str, Any],
) -> None:
    """Runs the control loop, then writes metrics, report, episode and Rerun file into the folder `out`.

    The enter key, a signal (`vla.control.stop.SIGNALS`), a disconnected operator terminal, the file `stop_file` and any
    button of `stop_gamepad` stop the arm. The embodiments are compared, and the policy runs one test inference, before
    the robot is connected.

    Args:
        robot: The robot.
        policy: Checkpoint, server or scripted policy.
        instruction: Task of the policy; None: that of the simulated scene.
        seconds: Duration of the run [s].
        loop: Fields of `LoopConfig`.
        lost: Time for which the connection to a policy server may be interrupted [s].
        stop_file: File whose existence stops the arm.
        stop_gamepad: Joystick device whose buttons stop the arm.
        confirm: Waits for enter before anything moves; None: for a real arm, if there is a terminal.
        dry_run: Sends no command to the robot and records nothing.
        view: Shows the run in Rerun.
        status_port: Port of the status page; None: no page.
        out: Output folder.
        record: Stores the run as an episode.
        codec: Image codec of a new store (`vla.datasets.codecs`); None: the default.
        kinematics: Conversion of tool poses to joints (`vla.control.adapt`).

    Raises:
        InputError: The embodiments differ, options do not fit each other or the policy, the policy cannot be loaded,
            or the store has another embodiment or codec.
        Failure: The run did not end as planned, or the robot does not connect; with a code of EXIT_CODES.
    """
    task = instruction or getattr(robot, "instruction", None)
    if not task:
        raise InputError(NO_INSTRUCTION)
    config = check_deploy(
        policy=policy, seconds=seconds, loop=loop, lost=lost, dry_run=dry_run, record=record, codec=codec
    )
    record = record and not dry_run
    body, folder = robot.embodiment, Path(out)
    steps_of(body.control_hz, config.hz)
    target: Robot = robot
    if dry_run:
        # An arm that receives no commands cannot stall.
        target, config = DryRun(robot), replace(config, stall=float("inf"), move_to_start=False, end="hold")
        print("dry_run: nothing is sent to the robot, and it does not move to the start of the demonstrations")
    with ExitStack() as stack:
        stop = EmergencyStop([operator, *stop_sources(stop_file, stop_gamepad, stack)])
        sizes = dict(image_sizes(robot))
        inference = ProcessInference(
            partial(_load, policy, body, sizes, robot.limits.velocity, dict(kinematics), config.execution)
        )
        stack.callback(inference.close)
        config, data = _adjust_to_policy(config, inference.info, policy)
        store = _store(folder, robot, codec, stack) if record else None
        stack.enter_context(target)
        _confirm_start(target, task, data, folder, confirm)
        recording = _recording(store, robot, folder, view, dry_run, stack)
        recording.start(task, policy=policy, robot=type(robot).__name__)
        events = EventLog()
        status = Status(events)
        if (address := stack.enter_context(status_page(status, status_port))) is not None:
            print(f"status: {address}", flush=True)

        def watch(tick: Tick) -> None:
            recording(tick)
            status(tick)

        def finished() -> str | None:
            return MET if getattr(robot, "success", False) else None

        control = ControlLoop(
            target,
            inference,
            config,
            stop=stop,
            watch=watch,
            connect=False,
            data=data,
            finished=finished,
            events=events,
        )
        try:
            with status:
                stats = control.run(task, seconds)
        finally:
            # Only a simulated robot measures success.
            recording.finish(getattr(robot, "success", None))
    report = _report(stats, robot, policy, task, recording)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / METRICS, report)
    written = control_page(folder, report, recording.trace, body)
    print(_text(report))
    print(f"open {written}, or: vla view {folder / STORE}" if record else f"open {written}")
    if stats.outcome != "done":
        raise Failure(f"the run ended: {stats.reason}", EXIT_CODES[stats.outcome])


def _adjust_to_policy(config: LoopConfig, info: PolicyInfo, policy: str) -> tuple[LoopConfig, DataSummary]:
    """Adapts the loop to the policy, printing each change, and returns it with the summary of the policy's data."""
    if config.execution in PREFIXED and not info.takes_prefix:
        print(f"loop.execution=chunked: {policy} does not take an action prefix, which {config.execution} needs")
        config = replace(config, execution="chunked")
    if info.data.start is None:
        if config.end == "home":
            raise InputError(f"loop.end=home: {policy} has no start pose of its demonstrations: choose hold")
        print(f"{policy} has no start pose of its demonstrations: the arm starts at its present pose")
    return config, info.data


def _confirm_start(robot: Robot, instruction: str, data: DataSummary, folder: Path, confirm: bool | None) -> None:
    """Writes the first camera images next to those of the training data, and waits for enter if required."""
    required = confirm if confirm is not None else not hasattr(robot, "success") and sys.stdin.isatty()
    path = None
    if data.start is not None and data.start.images and robot.embodiment.cameras:
        path = folder / CAMERAS
        cameras_beside_training(path, robot.observe(instruction), data.start.images)
        print(f"camera images next to those of the training data: {path}", flush=True)
    if required and sys.stdin.isatty() and in_background(sys.stdin.fileno()):
        raise InputError("a background process cannot read keys: bring it to the foreground, or add confirm=false")
    if required:
        print("enter: begin     anything else: end", flush=True)
        if sys.stdin.readline().strip():
            raise Failure("not begun", EXIT_CODES["stopped"])


def _load(
    policy: str,
    body: Embodiment,
    sizes: Mapping[str, tuple[int, int]],
    velocity: Sequence[float],
    kinematics: Mapping[str, Any],
    execution: str,
) -> Policy:
    loaded = adapt(policy_for(policy, body), body, velocity, kinematics)
    if (line := adapted_line(loaded)) is not None:
        print(line, flush=True)
    if takes_prefix(loaded):
        check_execution(loaded, execution)
    if unsized := [camera for camera in body.cameras if camera not in sizes]:
        print(f"no test inference: no image size is configured for {', '.join(unsized)}", flush=True)
    probe(loaded, body, sizes, execution)
    return loaded


def _store(folder: Path, robot: Robot, codec: str | None, stack: ExitStack) -> EpisodeStore:
    path = str(folder / STORE)
    if not open_folder(path).exists(""):
        return stack.enter_context(EpisodeStore.create(path, robot.embodiment, codec or DEFAULT))
    store = stack.enter_context(EpisodeStore.open(path, "a"))
    store.embodiment.check(robot.embodiment)
    if codec not in (None, store.codec):
        raise InputError(f"{path} has images as {store.codec}, not {codec}: leave codec= out, or set another out=")
    return store


def _recording(
    store: EpisodeStore | None, robot: Robot, folder: Path, view: bool, dry_run: bool, stack: ExitStack
) -> Recording:
    """A recording into the store, if there is one, and Rerun; for a dry run into Rerun's viewer only."""
    recorders: list[Recorder] = [] if store is None else [ZarrRecorder(store, robot.embodiment)]
    if view or not dry_run:
        recorders.append(_rerun(stream := _stream(folder, view), robot))
    recording = Recording(recorders, len(robot.embodiment.action), required=False)
    if not view and not dry_run:
        stack.callback(_close, stream, folder, recording.failed)
    return recording


def _stream(folder: Path, view: bool) -> rr.RecordingStream:
    """A stream to Rerun's viewer, or to a temporary file that `_close` renames once it is complete."""
    import rerun as rr

    from vla.recording.rerun_recorder import file_stream

    if view:
        stream = rr.RecordingStream("vla")
        stream.spawn()
    else:
        stream = file_stream()
        folder.mkdir(parents=True, exist_ok=True)
        stream.save(_unfinished(folder))
    return stream


def _close(stream: rr.RecordingStream, folder: Path, failed: list[str]) -> None:
    try:
        stream.flush(timeout_sec=60.0)
    except RuntimeError as error:  # what Rerun raises if the disk is full; the stream is unusable then
        failed.append(f"{RRD}: {explain_full_disk(error) or error}")
        _unfinished(folder).unlink(missing_ok=True)
        return
    stream.disconnect()
    _unfinished(folder).rename(folder / RRD)


def _unfinished(folder: Path) -> Path:
    return folder / f".{RRD}.partial"


def _rerun(stream: rr.RecordingStream, robot: Robot) -> Recorder:
    from vla.recording.rerun_recorder import RerunRecorder

    return RerunRecorder(stream, robot.embodiment)


def _report(stats: ControlStats, robot: Robot, policy: str, instruction: str, recording: Recording) -> dict[str, Any]:
    return {
        "policy": policy,
        "robot": type(robot).__name__,
        "instruction": instruction,
        "success": getattr(robot, "success", None),
        "steps": recording.steps,
        "recorders_failed": recording.failed,
        **stats.to_dict(),
    }


def _text(report: Mapping[str, Any]) -> str:
    lines = [f"{report['instruction']}: {report['reason']}"]
    if report["success"] is False:
        lines[0] += ", the task is not met"
    lines.append(f"{report['rate']:.1f} commands a second, {report['missed']} missed deadlines")
    lines.append(f"{'ms':10}{'median':>9}{'99 %':>9}{'most':>9}")
    for name in ("observe", "infer", "command", "jitter"):
        values = (1000 * report[name][key] for key in ("p50", "p99", "max"))
        lines.append(f"{name:10}" + "".join(f"{value:9.2f}" for value in values))
    for name, camera in report["cameras"].items():
        ages = "".join(f"{1000 * camera['age'][key]:9.2f}" for key in ("p50", "p99", "max"))
        lines.append(f"{name:10}{ages}  age of images, {camera['repeated']} repeated, {camera['dropped']} dropped")
    clamps = ", ".join(f"{name} {count}" for name, count in report["clamps"].items()) or "none"
    lines.append(
        f"{report['chunks']} chunks, {report['invalid']} invalid; stale {100 * report['stale']:.0f} %, "
        f"held {report['holds']} of {report['ticks']} ticks; clamps: {clamps}; faults: {report['faults']}"
    )
    return "\n".join(lines + [f"not recorded: {reason}" for reason in report["recorders_failed"]])

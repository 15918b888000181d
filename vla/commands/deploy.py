"""`vla deploy`: a policy on a robot, or on a simulated one in wall-clock time."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from vla.datasets.codecs import codec as known_codec
from vla.datasets.episodes import EpisodeStore
from vla.datasets.open_folder import open_folder
from vla.embodiment import Embodiment
from vla.errors import EXIT_CODES, Failure, InputError
from vla.policies.data_summary import DataSummary
from vla.policies.load import REMOTE, policy_for
from vla.policies.policy import Policy, takes_prefix
from vla.recording.recorder import Recorder
from vla.recording.zarr_recorder import ZarrRecorder
from vla.robots.dry_run import DryRun
from vla.robots.robot import Robot, image_sizes

if TYPE_CHECKING:
    import rerun as rr

    from vla.control.stats import ControlStats

STORE, RRD, NUMBERS, LOOK = "episodes.zarr", "episode.rrd", "deploy.json", "cameras.png"


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
    """Runs the loop for `seconds` [s], then writes numbers, page, episode and Rerun file into the folder `out`.

    The enter key, a signal (`vla.control.stop.SIGNALS`), an operator who is gone, the file `stop_file` and a button of
    `stop_gamepad` stop the arm. With `dry_run` nothing is sent to it, and what would be is shown (`view`) but not
    recorded; without `record` there is no episode. A new store's images are coded as `codec` (`vla.datasets.codecs`;
    None: the default). A policy that outputs tool poses drives joints by `kinematics` (`vla.control.adapt`). The
    embodiments are compared, and the policy is tried, before the robot is connected. `confirm` waits for enter before
    anything moves; None: of a real arm, where there is a terminal. A policy server may be `lost` for so long [s].

    Raises InputError where the embodiments differ, for options that do not fit one another or the policy, for a policy
    that cannot be loaded, and for a store of another embodiment or codec; Failure, with EXIT_CODES, where the run ended
    otherwise than planned, or the robot does not connect.
    """
    told = instruction or getattr(robot, "instruction", None)
    if not told:
        raise InputError("say what to do: instruction='pick up the red cube'")
    if seconds <= 0 or lost <= 0:
        raise InputError(f"seconds and lost must be above 0, not {seconds:g} and {lost:g}")
    record = record and not dry_run
    if codec is not None:
        known_codec(codec)
        if not record:
            raise InputError("codec= is of the episode, which is not stored with record=false or dry_run=true")
    config, body, folder = loop_config(loop, policy, lost), robot.embodiment, Path(out)
    steps_of(body.control_hz, config.hz)
    moved: Robot = robot
    if dry_run:
        if config.end != "hold":
            raise InputError(f"loop.end={config.end} moves the arm: leave it out with dry_run=true")
        # An arm that is told nothing does not stay behind.
        moved, config = DryRun(robot), replace(config, stall=float("inf"), move_to_start=False, end="hold")
        print("dry_run: nothing is sent to the robot, also no motion to the demonstrations' start")
    with ExitStack() as stack:
        stop = EmergencyStop([operator, *stop_sources(stop_file, stop_gamepad, stack)])
        sizes = dict(image_sizes(robot))
        inference = ProcessInference(
            partial(_load, policy, body, sizes, robot.limits.velocity, dict(kinematics), config.execution)
        )
        stack.callback(inference.close)
        config, data = _fitting(config, inference.info, policy)
        store = _store(folder, robot, codec, stack) if record else None
        stack.enter_context(moved)
        _look(moved, told, data, folder, confirm)
        recording = _recording(store, robot, folder, view, dry_run, stack)
        recording.start(told, policy=policy, robot=type(robot).__name__)
        events = EventLog()
        status = Status(events)
        if (address := stack.enter_context(status_page(status, status_port))) is not None:
            print(f"status: {address}", flush=True)

        def watch(tick: Tick) -> None:
            recording(tick)
            status(tick)

        def finished() -> str | None:
            return MET if getattr(robot, "success", False) else None

        run = ControlLoop(
            moved, inference, config, stop=stop, watch=watch, connect=False, data=data, finished=finished, events=events
        )
        try:
            with status:
                stats = run.run(told, seconds)
        finally:
            # Only a simulated robot knows.
            recording.finish(getattr(robot, "success", None))
    report = _report(stats, robot, policy, told, recording)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / NUMBERS, report)
    written = control_page(folder, report, recording.trace, body)
    print(_text(report))
    print(f"open {written}, or: vla view {folder / STORE}" if record else f"open {written}")
    if stats.outcome != "done":
        raise Failure(f"the run ended: {stats.reason}", EXIT_CODES[stats.outcome])


def loop_config(loop: Mapping[str, Any], policy: str, lost: float) -> LoopConfig:
    """The options `loop` for this policy: a server may be `lost` for so long [s]; answers of "hold" are no chunks."""
    config = LoopConfig(**loop)
    if policy.startswith(REMOTE):
        return replace(config, inference_timeout_s=max(config.inference_timeout_s, lost))
    return replace(config, invalid=None) if policy == "hold" else config


def _fitting(config: LoopConfig, about: PolicyInfo, policy: str) -> tuple[LoopConfig, DataSummary]:
    """The loop as the policy allows it, and what is known of its data, with a line for each thing that is not so."""
    if config.execution in PREFIXED and not about.takes_prefix:
        print(
            f"loop.execution=chunked: chunks of {policy} cannot begin with given actions, as {config.execution} needs"
        )
        config = replace(config, execution="chunked")
    if about.data.start is None:
        if config.end == "home":
            raise InputError(f"loop.end=home: {policy} does not say where its demonstrations begin: choose hold")
        print(f"{policy} does not say where its demonstrations begin: the arm starts where it stands")
    return config, about.data


def _look(robot: Robot, instruction: str, data: DataSummary, folder: Path, confirm: bool | None) -> None:
    """The cameras' first images beside the training data's, and the operator's consent where that is wanted."""
    wanted = confirm if confirm is not None else not hasattr(robot, "success") and sys.stdin.isatty()
    path = None
    if data.start is not None and data.start.images and robot.embodiment.cameras:
        path = folder / LOOK
        cameras_beside_training(path, robot.observe(instruction), data.start.images)
        print(f"the cameras beside the training data: {path}", flush=True)
    if wanted and sys.stdin.isatty() and in_background(sys.stdin.fileno()):
        raise InputError("in the background no key begins the run: bring it to the foreground, or add confirm=false")
    if wanted:
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
        print(f"the policy is not tried before it runs: no size is configured of {', '.join(unsized)}", flush=True)
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
    """Writes into the store, if there is one, and to Rerun; of a dry run to its viewer alone."""
    recorders: list[Recorder] = [] if store is None else [ZarrRecorder(store, robot.embodiment)]
    if view or not dry_run:
        recorders.append(_rerun(stream := _stream(folder, view), robot))
    recording = Recording(recorders, len(robot.embodiment.action), required=False)
    if not view and not dry_run:
        stack.callback(_close, stream, folder, recording.failed)
    return recording


def _stream(folder: Path, view: bool) -> rr.RecordingStream:
    """Rerun's viewer, or a file for it, which has its name when it is whole."""
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
    except RuntimeError as error:  # all that Rerun says of a full disk; it does not go on then
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

"""`vla deploy`: a policy on a robot, or on a simulated one in wall-clock time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.control.adapt import adapt, adapted_line
from vla.control.inference import check_execution
from vla.control.loop import ControlLoop, LoopConfig
from vla.control.page import control_page
from vla.control.process_inference import ProcessInference
from vla.control.recording import Recording
from vla.control.robot import Robot
from vla.control.robots.dry_run import DryRun
from vla.control.stop import EmergencyStop, operator
from vla.datasets.codecs import DEFAULT
from vla.datasets.codecs import codec as known_codec
from vla.datasets.episodes import EpisodeStore
from vla.datasets.folder import open_folder
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.evaluation.summary import write_json
from vla.full_disk import explain_full_disk
from vla.policies.load import policy_for
from vla.policies.protocol import Policy
from vla.recording.protocol import Recorder
from vla.recording.zarr_recorder import ZarrRecorder

if TYPE_CHECKING:
    import rerun as rr

    from vla.control.stats import ControlStats

STORE, RRD, NUMBERS = "episodes.zarr", "episode.rrd", "deploy.json"


def deploy(
    *,
    robot: Robot,
    policy: str,
    instruction: str | None,
    seconds: float,
    loop: Mapping[str, Any],
    dry_run: bool,
    view: bool,
    out: str,
    record: bool,
    codec: str | None,
    kinematics: Mapping[str, Any],
) -> None:
    """Runs the loop for `seconds` [s], then writes numbers, page, episode and Rerun file into the folder `out`.

    The enter key, a signal (`vla.control.stop.SIGNALS`), and an operator who is gone stop the arm. With `dry_run`
    nothing is sent to it, and what would be is shown (`view`) but not recorded; without `record` there is no episode.
    A new store's images are coded as `codec` (`vla.datasets.codecs`; None: the default). A policy that outputs tool
    poses drives joints by `kinematics` (`vla.control.adapt`). The embodiments are compared before the robot is
    connected. Raises InputError where they differ, for options that do not fit one another or the policy, for a policy
    that cannot be loaded, and for a store of another embodiment or codec.
    """
    told = instruction or getattr(robot, "instruction", None)
    if not told:
        raise InputError("say what to do: instruction='pick up the red cube'")
    if seconds <= 0:
        raise InputError(f"seconds must be above 0, not {seconds:g}")
    record = record and not dry_run
    if codec is not None:
        known_codec(codec)
        if not record:
            raise InputError("codec= is of the episode, which is not stored with record=false or dry_run=true")
    config, body, folder = LoopConfig(**loop), robot.embodiment, Path(out)
    moved: Robot = robot
    if dry_run:
        # An arm that is told nothing does not stay behind.
        moved, config = DryRun(robot), replace(config, stall=float("inf"))
    with ExitStack() as stack:
        inference = ProcessInference(
            partial(_load, policy, body, robot.limits.velocity, dict(kinematics), config.execution)
        )
        stack.callback(inference.close)
        recorders: list[Recorder] = [ZarrRecorder(_store(folder, robot, codec, stack), body)] if record else []
        if view or not dry_run:
            recorders.append(_rerun(stream := _stream(folder, view), robot))
        recording = Recording(recorders, len(body.action), required=False)
        if not view and not dry_run:
            stack.callback(_close, stream, folder, recording.failed)
        recording.start(told, policy=policy, robot=type(robot).__name__)
        try:
            stop = EmergencyStop([operator, lambda: "the task is met" if getattr(robot, "success", False) else None])
            stats = ControlLoop(moved, inference, config, stop=stop, watch=recording).run(told, seconds)
        finally:
            # Only a simulated robot knows.
            recording.finish(getattr(robot, "success", None))
    report = _report(stats, robot, policy, told, recording)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / NUMBERS, report)
    page = control_page(folder, report, recording.trace, body)
    print(_text(report))
    print(f"open {page}, or: vla view {folder / STORE}" if record else f"open {page}")


def _load(
    policy: str, body: Embodiment, velocity: Sequence[float], kinematics: Mapping[str, Any], execution: str
) -> Policy:
    loaded = adapt(policy_for(policy, body), body, velocity, kinematics)
    if (line := adapted_line(loaded)) is not None:
        print(line, flush=True)
    check_execution(loaded, execution)
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


def _stream(folder: Path, view: bool) -> rr.RecordingStream:
    """Rerun's viewer, or a file for it, which has its name when it is whole."""
    import rerun as rr

    stream = rr.RecordingStream("vla")
    if view:
        stream.spawn()
    else:
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
    clamps = ", ".join(f"{name} {count}" for name, count in report["clamps"].items()) or "none"
    lines.append(
        f"{report['chunks']} chunks, {report['invalid']} invalid; stale {100 * report['stale']:.0f} %, "
        f"held {report['holds']} of {report['ticks']} ticks; clamps: {clamps}; faults: {report['faults']}"
    )
    return "\n".join(lines + [f"not recorded: {reason}" for reason in report["recorders_failed"]])

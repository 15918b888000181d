"""`vla so101-sim`: emulates a SO-101 on a serial port, for LeRobot's driver and tools."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

from vla.commands.operation_checks import check_emulation
from vla.envs.make import make_env, not_one_arm
from vla.envs.so101 import SO101Env
from vla.errors import InputError
from vla.robots.feetech_emulator.arm import ServoArm
from vla.robots.feetech_emulator.cameras import CameraStream
from vla.robots.feetech_emulator.port import ServoPort

NAME = "so101"
"""The id under which LeRobot finds the calibration."""
LOG_BUFFER = 1 << 20
FAULTS = "mute ID | overload ID | blind CAMERA | corrupt P | drop P | slow SECONDS | unplug | plug | heal"


def so101_sim(
    *, task: str, seed: int, out: str, calibrated: bool, image_size: int, camera_port: int, fps: float, log: str | None
) -> None:
    """Runs the emulated arm until ctrl-C or SIGTERM; lines on the standard input inject faults (FAULTS).

    Args:
        task: A task with one SO-101, whose scene is simulated.
        seed: Seed of the scene.
        out: Folder for `port`, a link to the pseudo-terminal, and so101.json, LeRobot's calibration.
        calibrated: Whether the servos are calibrated; if not, they have factory settings and no file is written.
        image_size: Side of the camera images [pixels].
        camera_port: Port of the cameras; 0: no cameras.
        fps: Rate of the cameras [Hz].
        log: File for each write of goal positions (`Bus.log`), complete when this function returns; None: no file.

    Raises:
        InputError: The task is unknown or does not have exactly one SO-101, or the camera port is in use.
    """
    check_emulation(seed, image_size, camera_port, fps)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Rendering and encoding images must not delay the servos' answers by Python's default of 5 ms.
    sys.setswitchinterval(2e-4)
    with ExitStack() as stack:
        env = make_env(task, image_size=image_size, images=False).unwrapped
        stack.callback(env.close)
        if not isinstance(env, SO101Env) or len(env.scene.arms) > 1:
            raise not_one_arm(task)
        _, info = env.reset(seed=seed)
        arm, folder = ServoArm(env.scene), Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        if calibrated:
            _write(folder / f"{NAME}.json", json.dumps(arm.calibrate(), indent=4))
        cameras = stack.enter_context(CameraStream(arm, camera_port, fps)) if camera_port else None
        servos = ServoPort(arm, folder / "port")
        if log:
            Path(log).parent.mkdir(parents=True, exist_ok=True)
            servos.bus.log = stack.enter_context(open(log, "w", buffering=LOG_BUFFER))
        port = stack.enter_context(servos)
        print(f"scene {seed}: {info['instruction']}")
        print(connection(folder, env.scene.cameras, image_size, camera_port, fps))
        print(f"faults, one a line: {FAULTS}\nctrl-C ends", flush=True)
        # Garbage collection would traverse all imported modules, while a driver waits for an answer for 34 ms at most.
        gc.collect()
        gc.freeze()
        try:
            for line in sys.stdin:
                try:
                    obey(port, line, cameras)
                except InputError as error:
                    print(error, flush=True)
            threading.Event().wait()
        except KeyboardInterrupt:
            print(f"ended; {port.skipped:.2f} s of simulation skipped because the machine was too slow")


def connection(folder: Path, cameras: tuple[str, ...], size: int, camera_port: int, fps: float) -> str:
    """The arguments for LeRobot's tools that select the emulated arm."""
    lines = [
        "--robot.type=so101_follower",
        f"--robot.port={folder.absolute() / 'port'}",
        f"--robot.id={NAME}",
        f"--robot.calibration_dir={folder.absolute()}",
    ]
    if camera_port:
        entries = (
            f"{name}: {{type: zmq, server_address: 127.0.0.1, port: {camera_port}, camera_name: {name}, "
            f"width: {size}, height: {size}, fps: {fps:.0f}}}"
            for name in cameras
        )
        lines.append(f'--robot.cameras="{{{", ".join(entries)}}}"')
    return " \\\n".join(lines)


def obey(port: ServoPort, line: str, cameras: CameraStream | None = None) -> None:
    """Injects the fault that a line names. Raises InputError for an unknown fault."""
    faults, words = port.bus.faults, line.split()
    known = cameras.arm.scene.cameras if cameras else ()
    match words:
        case []:
            pass
        case ["unplug"]:
            port.unplug()
        case ["plug"]:
            port.plug()
        case ["heal"]:
            faults.mute, faults.corrupt, faults.drop, faults.delay = set(), 0.0, 0.0, 0.0
            if cameras:
                cameras.dead = frozenset()
        case ["blind", name] if cameras and name in known:
            cameras.dead |= {name}
        case ["mute" | "overload" as what, id] if id in {str(servo.id) for servo in port.bus.servos}:
            if what == "mute":
                faults.mute = faults.mute | {int(id)}
            else:
                next(servo for servo in port.bus.servos if servo.id == int(id)).overload()
        case ["corrupt" | "drop" | "slow" as what, number] if _amount(number) is not None:
            setattr(faults, {"slow": "delay"}.get(what, what), _amount(number))
        case _:
            raise InputError(f"unknown fault {line.strip()!r}; known: {FAULTS}")


def _amount(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None


def _write(file: Path, text: str) -> None:
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    fresh.write_text(text)
    fresh.replace(file)

"""`vla so101-sim`: a simulated SO-101 on a serial port, for LeRobot's own driver and tools."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

from vla.envs.make import make_env
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
    """Runs the arm in the scene of `seed` until ctrl-C or SIGTERM; lines on the standard input bring faults (FAULTS).

    The folder `out` gets `port`, a link to the pseudo-terminal, and so101.json, LeRobot's calibration. Without
    `calibrated` the servos are as from the factory, and no file is written.

    `log` is a file that gets each write of goal positions, as `Bus.log` says; it is whole once this has returned.

    Raises InputError for an unknown task, one without a single SO-101, and a camera port that is taken.
    """
    if fps <= 0:
        raise InputError(f"fps must be above 0, not {fps}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Drawing and encoding pictures must not keep the servos from answering for Python's usual 5 ms.
    sys.setswitchinterval(2e-4)
    with ExitStack() as stack:
        env = make_env(task, image_size=image_size, images=False).unwrapped
        stack.callback(env.close)
        if not isinstance(env, SO101Env) or len(env.scene.arms) > 1:
            raise InputError(f"{task} has not one SO-101: choose a task that has, such as task=pick")
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
        # Collecting garbage, Python would go through all that is imported, while a driver waits 34 ms for an answer.
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
            print(f"ended; {port.skipped:.2f} s of simulation left out for want of time")


def connection(folder: Path, cameras: tuple[str, ...], size: int, camera_port: int, fps: float) -> str:
    """The arguments by which LeRobot's tools find the arm."""
    lines = [
        "--robot.type=so101_follower",
        f"--robot.port={folder.absolute() / 'port'}",
        f"--robot.id={NAME}",
        f"--robot.calibration_dir={folder.absolute()}",
    ]
    if camera_port:
        each = (
            f"{name}: {{type: zmq, server_address: 127.0.0.1, port: {camera_port}, camera_name: {name}, "
            f"width: {size}, height: {size}, fps: {fps:.0f}}}"
            for name in cameras
        )
        lines.append(f'--robot.cameras="{{{", ".join(each)}}}"')
    return " \\\n".join(lines)


def obey(port: ServoPort, line: str, cameras: CameraStream | None = None) -> None:
    """Brings the fault that a line names. Raises InputError for a line that names none."""
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

"""`vla doctor`: checks what this machine provides, and how to install what is missing."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from vla.common.pip_install import install_command
from vla.errors import InputError

PACKAGES = ("torch", "transformers", "gymnasium", "mujoco", "lerobot", "hydra-core", "zarr", "rerun-sdk", "datasets")
DISK_GB = 5

# Run in a separate process: a broken GL driver may end the process instead of raising.
RENDER = """
from vla.common.mujoco_gl import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><light pos='0 0 3'/><geom size='1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 64, 64) as renderer:
    renderer.update_scene(data)
    assert renderer.render().any(), "the frame is black"
"""


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: What was checked.
        ok: Whether it is present.
        found: What was found.
        fix: How to install or repair it.
        needed: Whether the demo needs it.
    """

    name: str
    ok: bool
    found: str
    fix: str = ""
    needed: bool = False

    def __str__(self) -> str:
        line = f"{'ok' if self.ok else 'missing':8} {self.name:10} {self.found}"
        return line if self.ok else f"{line}\n{'':20}{self.fix}"


def doctor() -> None:
    """Prints every check. Raises SystemExit(1) if something that the demo needs is missing."""
    missing = False
    for check in checks():
        print(check, flush=True)
        missing |= check.needed and not check.ok
    print("\nThe demo cannot run yet." if missing else "\n`vla demo` can run.")
    if missing:
        raise SystemExit(1)


def checks() -> Iterator[Check]:
    """Runs every check, fast ones first."""
    yield python()
    yield packages()
    yield disk()
    yield ports()
    yield cameras()
    yield priority()
    yield display()
    yield rendering()
    yield gpu()


def python() -> Check:
    """The version of Python."""
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info >= (3, 12), found, "install Python 3.12 or newer", True)


def packages(names: tuple[str, ...] = PACKAGES) -> Check:
    """The versions of required packages."""
    found, absent = [], []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            absent.append(name)
    return Check("packages", not absent, ", ".join(absent or found), install_command("-r", "requirements.lock"), True)


def disk(folder: str = ".") -> Check:
    """Free disk space at `folder`."""
    free = shutil.disk_usage(folder).free / 1e9
    return Check(
        "disk", free >= DISK_GB, f"{free:.0f} GB free", f"free {DISK_GB} GB for recordings and checkpoints", True
    )


def ports(patterns: tuple[str, ...] = ("/dev/ttyACM*", "/dev/ttyUSB*", "/dev/tty.usbmodem*")) -> Check:
    """Serial ports of motor buses, and whether this user may open them."""
    found = sorted(path for pattern in patterns for path in glob.glob(pattern))
    closed = [path for path in found if not os.access(path, os.R_OK | os.W_OK)]
    if closed:
        fix = "to get permission: sudo usermod -aG dialout $USER, then log in again"
        return Check("ports", False, f"no permission for {', '.join(closed)}", fix)
    fix = "connect the arm's USB cable and power; only a real arm needs this"
    return Check("ports", bool(found), ", ".join(found) or "no serial port", fix)


def cameras(pattern: str = "/dev/v4l/by-id/*-index0") -> Check:
    """Cameras by persistent names; numbers of /dev/video may change when the machine restarts."""
    found = sorted(glob.glob(pattern))
    fix = "connect the cameras; use these names in robot.cameras, since /dev/video0 may change after a restart"
    return Check("cameras", bool(found), ", ".join(found) or "no camera with a persistent name", fix)


def priority() -> Check:
    """Whether the control loop may run with real-time priority."""
    from vla.common.thread_priority import realtime_priority

    with realtime_priority() as granted:
        fix = (
            "add the line `$USER - rtprio 20` to /etc/security/limits.conf, then log in again; only a real arm needs it"
        )
        return Check("priority", granted, "real-time" if granted else "no permission for real-time priority", fix)


def display() -> Check:
    """Whether there is a screen for viewers."""
    found = os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY") or ""
    ok = bool(found) or sys.platform == "darwin"
    fix = "use `vla view PATH --save x.rrd` and open the file with `rerun x.rrd` on a machine with a screen"
    return Check("display", ok, found or ("screen" if ok else "no screen"), fix)


def rendering(timeout: float = 60.0) -> Check:
    """Whether MuJoCo renders a frame off screen (through EGL on Linux) within `timeout` [s]."""
    from vla.common.rendering import backend, check_rendering

    name = "cgl" if sys.platform == "darwin" else backend()
    try:
        check_rendering()
        environment = {**os.environ, "MUJOCO_GL": name}
        run = subprocess.run(
            [sys.executable, "-c", RENDER], env=environment, capture_output=True, text=True, timeout=timeout
        )
        failed = "" if run.returncode == 0 else (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
    except InputError as error:
        failed = str(error)
    except subprocess.TimeoutExpired:
        failed = f"no frame in {timeout:.0f} s"
    fix = (
        "apt install libegl1 libgl1 libglx-mesa0 libgl1-mesa-dri, or set MUJOCO_GL=osmesa after apt install libosmesa6"
    )
    return Check("rendering", not failed, failed or f"MuJoCo renders with {name}", fix, True)


def gpu() -> Check:
    """The CUDA device, if there is one."""
    try:
        import torch
    except ImportError:
        return Check("gpu", False, "torch is not installed", "see packages")
    if not torch.cuda.is_available():
        return Check(
            "gpu", False, "no CUDA device", "the demo's model needs none; large backbones want an NVIDIA driver"
        )
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    return Check("gpu", True, f"{torch.cuda.get_device_name(0)}, {memory:.0f} GB")

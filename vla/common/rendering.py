"""How MuJoCo draws without a window: the environment variable MUJOCO_GL, and what it asks of the machine."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from typing import TYPE_CHECKING

from vla.errors import InputError

if TYPE_CHECKING:
    import mujoco

LIBRARIES = {
    "egl": (("libEGL.so.1", "libEGL.so"), "apt install libegl1 libgl1 libglx-mesa0 libgl1-mesa-dri"),
    "osmesa": (("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"), "apt install libosmesa6"),
}
WINDOW = ("glfw", "glx", "enable", "enabled", "on", "true", "1")
OFF = ("disable", "disabled", "off", "false", "0")


def backend() -> str:
    """The value of MUJOCO_GL as MuJoCo reads it; on Linux egl where it is not set."""
    return os.environ.get("MUJOCO_GL", "").lower().strip() or ("egl" if sys.platform == "linux" else "")


def check_rendering() -> None:
    """Raises InputError, which names MUJOCO_GL and what to set, where it asks for what is not here. In no time."""
    name = backend()
    if sys.platform != "linux":
        return
    if name in OFF:
        raise _error("MuJoCo draws nothing", "unset it")
    if name not in (*LIBRARIES, *WINDOW):
        raise _error("there is no such way to draw", f"set it to {' or '.join(LIBRARIES)}")
    if name in WINDOW:
        if not _has_window():
            raise _error("there is no screen that a window could open on", "set MUJOCO_GL=egl")
        return
    libraries, install = LIBRARIES[name]
    if not any(map(_loads, libraries)):
        other = next(one for one in LIBRARIES if one != name)
        raise _error(f"{libraries[0]} is not on this machine", f"{install}; or set MUJOCO_GL={other}")
    if os.environ.get("PYOPENGL_PLATFORM", name) != name:
        raise _error(f"PYOPENGL_PLATFORM={os.environ['PYOPENGL_PLATFORM']} is another", "unset that one")


def make_renderer(model: mujoco.MjModel, height: int, width: int) -> mujoco.Renderer:
    """MuJoCo's renderer of images of that size. Raises InputError as `check_rendering`, and where the driver fails."""
    check_rendering()
    # What is half made complains once more when it is freed.
    complain, sys.unraisablehook = sys.unraisablehook, lambda _: None
    reason = ""
    try:
        import mujoco

        return mujoco.Renderer(model, height, width)
    except Exception as error:  # of MuJoCo, PyOpenGL or the driver: there is no common kind
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
    finally:
        sys.unraisablehook = complain
    raise _error(f"the driver fails: {reason}", "`vla doctor` says what there is")


def _error(why: str, cure: str) -> InputError:
    given = f"MUJOCO_GL={os.environ['MUJOCO_GL']}" if os.environ.get("MUJOCO_GL") else f"MUJOCO_GL is {backend()}"
    return InputError(f"cannot draw images: {given}, but {why}: {cure}")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _has_window() -> bool:
    """Whether GLFW, which MuJoCo opens windows with, finds a screen."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    import glfw

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(glfw.init())

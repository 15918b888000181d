"""Off-screen rendering of MuJoCo: the environment variable MUJOCO_GL and its requirements."""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import warnings
import weakref
from functools import cache
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


_RENDERERS: weakref.WeakSet[mujoco.Renderer] = weakref.WeakSet()
"""The renderers that exist; closing one a second time has no effect."""


@cache
def _close_at_exit() -> None:
    """Closes all renderers at exit, once the first exists.

    MuJoCo has then registered the end of EGL, after which no renderer can be freed; the last one registered runs first.
    """
    atexit.register(lambda: [renderer.close() for renderer in list(_RENDERERS)])


def backend() -> str:
    """The value of MUJOCO_GL as MuJoCo reads it; default on Linux: egl."""
    return os.environ.get("MUJOCO_GL", "").lower().strip() or ("egl" if sys.platform == "linux" else "")


def check_rendering() -> None:
    """Raises InputError if this machine lacks the requirements of MUJOCO_GL; fast, as nothing is rendered."""
    name = backend()
    if sys.platform != "linux":
        return
    if name in OFF:
        raise _error("this disables rendering", "unset it")
    if name not in (*LIBRARIES, *WINDOW):
        raise _error("there is no such backend", f"set it to {' or '.join(LIBRARIES)}")
    if name in WINDOW:
        if not _has_window():
            raise _error("there is no screen for a window", "set MUJOCO_GL=egl")
        return
    libraries, install = LIBRARIES[name]
    if not any(map(_loads, libraries)):
        other = next(library for library in LIBRARIES if library != name)
        raise _error(f"{libraries[0]} is not on this machine", f"{install}; or set MUJOCO_GL={other}")
    if os.environ.get("PYOPENGL_PLATFORM", name) != name:
        raise _error(f"PYOPENGL_PLATFORM={os.environ['PYOPENGL_PLATFORM']} differs", "unset PYOPENGL_PLATFORM")


def make_renderer(model: mujoco.MjModel, height: int, width: int) -> mujoco.Renderer:
    """MuJoCo's renderer for images of this size [pixels].

    Raises:
        InputError: As `check_rendering`, or the driver fails.
    """
    check_rendering()
    # A partially constructed renderer raises again when it is freed.
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    reason = ""
    try:
        import mujoco

        renderer = mujoco.Renderer(model, height, width)
        _RENDERERS.add(renderer)
        _close_at_exit()
        return renderer
    except Exception as error:  # exceptions of MuJoCo, PyOpenGL and the driver have no common base class
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
    finally:
        sys.unraisablehook = hook
    raise _error(f"the driver fails: {reason}", "`vla doctor` checks this machine")


def _error(reason: str, cure: str) -> InputError:
    setting = f"MUJOCO_GL={os.environ['MUJOCO_GL']}" if os.environ.get("MUJOCO_GL") else f"MUJOCO_GL is {backend()}"
    return InputError(f"cannot render images: {setting}, but {reason}: {cure}")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _has_window() -> bool:
    """Whether GLFW, which MuJoCo uses for windows, finds a screen."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    import glfw

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(glfw.init())

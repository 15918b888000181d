"""Shows an environment in MuJoCo's viewer, or saves its cameras' images side by side."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vla.common.mujoco_gl import mujoco
from vla.common.screen import has_screen, no_screen
from vla.envs.make import make_env
from vla.envs.so101 import SO101Env
from vla.errors import InputError

SIZE = 480
"""The side length of an image [px]."""
FRAME = 0.05
"""The time between two frames of a scene at rest [s]."""
BEHIND = {"azimuth": 0.0, "elevation": -40.0, "distance": 0.9, "lookat": (0.2, 0.0, 0.05)}
"""The initial view from behind the arm [degrees, m]."""


class Window:
    """MuJoCo's viewer for an environment after reset; a context manager.

    It shows a copy of the state, so that interaction in the viewer does not change the simulation.

    Args:
        env: The environment.
        instead: The advice in the error message if no window can open.
        press: Called with GLFW's code of each pressed key.

    Raises:
        InputError: no window can open.
    """

    def __init__(self, env: gym.Env[Any, Any], instead: str, press: Callable[[int], None] | None = None) -> None:
        inner: Any = env.unwrapped
        self._scene = getattr(inner, "scene", inner)  # both hold `model` and `data`
        self._copy = mujoco.MjData(self._scene.model)
        _check_screen(instead)
        from mujoco import viewer

        try:
            self._viewer = viewer.launch_passive(
                self._scene.model, self._copy, key_callback=press, show_left_ui=False, show_right_ui=False
            )
        except RuntimeError as error:  # on a Mac, outside mjpython
            raise InputError(f"the viewer cannot open: {error}; or {instead}") from error
        if isinstance(inner, SO101Env):
            for name, value in BEHIND.items():
                setattr(self._viewer.cam, name, value)

    def show(self, text: str = "") -> bool:
        """Shows the present state with a line of text; returns False once the window is closed."""
        with self._viewer.lock():
            mujoco.mj_copyData(self._copy, self._scene.model, self._scene.data)
        self._viewer.set_texts((mujoco.mjtFontScale.mjFONTSCALE_150, mujoco.mjtGridPos.mjGRID_TOPLEFT, text, ""))
        self._viewer.sync()
        return bool(self._viewer.is_running())

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *_: object) -> None:
        self._viewer.close()


def _check_screen(instead: str) -> None:
    """Raises InputError without a screen, where the viewer's thread would die and its start would block."""
    if has_screen():
        import glfw

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if glfw.init():
                return
    raise no_screen(instead)


def look(task: str, seed: int, save: str | None) -> None:
    """Opens the viewer on the scene of `seed`, or writes its cameras' images side by side to the .png file `save`.

    Raises:
        InputError: the task is unknown, the seed is negative, or the file is not .png; before anything is written.
    """
    if save is not None and not save.endswith(".png"):
        raise InputError(f"an environment is saved as a picture: --save x.png, not {save}")
    if seed < 0:
        raise InputError(f"the seed must be 0 or more, not {seed}")
    env = make_env(task, image_size=SIZE)
    try:
        observation, _ = env.reset(seed=seed)
        print(f"{task}, seed {seed}: {observation['instruction']}")
        if save is None:
            with Window(env, "write a picture with --save x.png") as window:
                while window.show(observation["instruction"]):
                    time.sleep(FRAME)
            return
        _write(side_by_side(observation["images"]), Path(save))
        print(f"wrote {save}: {', '.join(observation['images'])}")
    finally:
        env.close()


def side_by_side(images: Mapping[str, UInt8[np.ndarray, "_h _w 3"]]) -> UInt8[np.ndarray, "height width 3"]:
    """The images side by side, padded with black at the bottom."""
    height = max(image.shape[0] for image in images.values())
    return np.concatenate([np.pad(i, ((0, height - len(i)), (0, 0), (0, 0))) for i in images.values()], axis=1)


def _write(picture: UInt8[np.ndarray, "h w 3"], path: Path) -> None:
    unfinished = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(unfinished, format="PNG")
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}") from error

"""Adapter for third-party environments.

| part        | value                                                                             |
|-------------|-----------------------------------------------------------------------------------|
| observation | images {camera: (h, w, 3) uint8}, state (s,), instruction                         |
| action      | (a,), in the units of the embodiment, clipped to its limits                       |
| reward      | unchanged                                                                         |
| info        | unchanged, with success, is_success, instruction, wrong_object (always false), seed |

An episode ends at success, or after `max_steps`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from operator import attrgetter
from pkgutil import resolve_name
from typing import Any, override

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from jaxtyping import Float, UInt8

from vla.common.mujoco_gl import mujoco
from vla.common.pip_install import install_command
from vla.embodiment import ACTION_MODES, Embodiment
from vla.envs.suites.config import Suite
from vla.envs.suites.pictures import ModelRenderer
from vla.errors import InputError

MAX_LENGTH = 256
"""The maximum number of characters of an instruction."""


class SuiteEnv(gym.Env[dict[str, Any], Float[np.ndarray, "a"]]):
    """The environment that `config` describes; reproducible by seed if the environment is.

    Args:
        config: The description.
        image_size: Overrides the image sizes of the cameras [px].
        images: Whether images are rendered; otherwise they are black.

    Raises:
        InputError: the environment cannot be made, or lacks something in the description.
    """

    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    def __init__(self, config: Suite, image_size: int | None = None, images: bool = True) -> None:
        self.config, self.draws = config, images
        if image_size is not None:
            for camera in config.cameras.values():
                camera.height = camera.width = image_size
        self.inner = _make(config)
        self.embodiment = _embodiment(config, self.inner)
        self.metadata = self.metadata | {"render_fps": round(config.control_hz)}
        self._renderer: ModelRenderer | None = None
        self._readers = [_reader(source) for source in config.state.values()]
        low, high = np.array(self.embodiment.action_low), np.array(self.embodiment.action_high)
        self.action_space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
        sizes = {name: (camera.height, camera.width, 3) for name, camera in config.cameras.items()}
        self._blank = {name: np.zeros(size, np.uint8) for name, size in sizes.items()}
        self.observation_space = spaces.Dict(
            images=spaces.Dict({name: spaces.Box(0, 255, size, np.uint8) for name, size in sizes.items()}),
            state=spaces.Box(-np.inf, np.inf, (len(config.state),), np.float32),
            instruction=spaces.Text(MAX_LENGTH, charset=string.printable),
        )

    @property
    def model(self) -> mujoco.MjModel:
        """The MuJoCo model of the environment, which may change at a reset."""
        return attrgetter(self.config.model)(self.inner.unwrapped)

    @property
    def data(self) -> mujoco.MjData:
        """The MuJoCo data of the environment."""
        return attrgetter(self.config.data)(self.inner.unwrapped)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode. Raises InputError for the options "swap" and "target": a scene has one instruction."""
        if (options or {}).keys() & {"swap", "target"}:
            raise InputError(f"{self.config.id} has one instruction per scene: set swap=false")
        super().reset(seed=seed)
        self._seed = int(self.np_random.integers(2**31)) if seed is None else int(seed)
        self.raw, info = self.inner.reset(seed=self._seed)
        phrasings = [info["instruction"]] if "instruction" in info else self.config.instruction
        if not phrasings:
            raise InputError(f"{self.config.id}: set instruction")
        self._instruction = str(np.random.default_rng(self._seed).choice(phrasings))
        return self._observe(), self._info(info, False)

    @override
    def step(self, action: Float[np.ndarray, "a"]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        action = np.asarray(action, dtype=np.float64)
        self.embodiment.check_action(action)
        action = np.clip(action, self.embodiment.action_low, self.embodiment.action_high)
        self.raw, reward, ended, truncated, info = self.inner.step(action.astype(self.inner.action_space.dtype))
        success = self._judge(info, float(reward))
        return self._observe(), float(reward), bool(ended or success), bool(truncated), self._info(info, success)

    def _judge(self, info: Mapping[str, Any], reward: float) -> bool:
        config = self.config
        if config.success is None:
            return reward >= config.success_reward  # type: ignore[operator]
        if config.success not in info:
            raise InputError(f"{config.id}: its info has no {config.success!r} (success); it has {', '.join(info)}")
        return bool(info[config.success])

    def _observe(self) -> dict[str, Any]:
        state = [read(self.raw, self.model, self.data) for read in self._readers]
        return {
            "images": self.capture() if self.draws else self._blank,
            "state": np.array(state, np.float32),
            "instruction": self._instruction,
        }

    def _info(self, info: Mapping[str, Any], success: bool) -> dict[str, Any]:
        ours = {"success": success, "is_success": success, "instruction": self._instruction, "wrong_object": False}
        return {**info, **ours, "seed": self._seed}

    def capture(self) -> dict[str, UInt8[np.ndarray, "_h _w 3"]]:
        """The cameras' images of the present state."""
        model = self.model
        if (
            self._renderer is None or self._renderer.model is not model
        ):  # some environments build a new model per episode
            self._free()
            self._renderer = ModelRenderer(model, self.config.cameras)
        return self._renderer.draw(self.data, {s: _entry(self.raw, key) for s, key in self.config.sites.items()})

    def render(self) -> UInt8[np.ndarray, "h w 3"]:
        """The first camera's image."""
        return self.capture()[self.embodiment.cameras[0]]

    def _free(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
        self._renderer = None

    @override
    def close(self) -> None:
        self._free()
        self.inner.close()


class SuiteExpert:
    """The scripted expert of a description; it acts on the environment's original observation."""

    def __init__(self, env: SuiteEnv) -> None:
        if env.config.expert is None:
            raise InputError(f"{env.config.id} has no scripted expert")
        self._env, self._make = env, resolve_name(env.config.expert)
        self.reset()

    def reset(self) -> None:
        """Makes a new policy without state."""
        self._policy = self._make(self._env.inner.unwrapped)

    def act(self) -> Float[np.ndarray, "a"]:
        """The action for the present state."""
        action = np.asarray(self._policy(self._env.raw), np.float64)
        return np.clip(action, self._env.embodiment.action_low, self._env.embodiment.action_high)


def _make(config: Suite) -> gym.Env[Any, Any]:
    try:
        return gym.make(config.id, disable_env_checker=True, max_episode_steps=config.max_steps, **config.kwargs)
    except ImportError as error:
        named = "==" in config.needs and " " not in config.needs
        advice = f": {install_command(config.needs) if named else f'install {config.needs}'}" if config.needs else ""
        raise InputError(f"cannot make {config.id} ({error}){advice}") from error
    except gym.error.Error as error:
        raise InputError(f"cannot make {config.id}: {error}") from error


def _embodiment(config: Suite, env: gym.Env[Any, Any]) -> Embodiment:
    space = env.action_space
    if not isinstance(space, spaces.Box) or space.shape != (len(config.action),):
        raise InputError(f"{config.id}: its action space is {space}, but the config has {len(config.action)} actions")
    defaults = np.stack([space.low, space.high], axis=1).astype(np.float64).tolist()
    limits = [defaults[i] if limits is None else limits for i, limits in enumerate(config.action.values())]
    for name, limit in zip(config.action, limits, strict=True):
        if len(limit) != 2 or not np.isfinite(limit).all():
            raise InputError(f"{config.id}: set the limits of {name} as [LOW, HIGH], not {limit}")
    low, high = zip(*limits, strict=True)
    modes = config.action_mode
    if isinstance(modes, str):
        modes = dict.fromkeys(config.action, modes)
    if not isinstance(modes, dict) or modes.keys() != config.action.keys():
        raise InputError(f"{config.id}: action_mode is one of {', '.join(ACTION_MODES)}, or one for each of action")
    return Embodiment(
        name=config.robot,
        cameras=tuple(config.cameras),
        state=tuple(config.state),
        action=tuple(config.action),
        action_low=low,
        action_high=high,
        control_hz=config.control_hz,
        action_mode=tuple(str(modes[name]) for name in config.action),
        grippers=tuple(config.grippers),
    )


def _entry(raw: Any, key: str) -> Any:
    for part in key.split("/") if key else ():
        if not isinstance(raw, Mapping) or part not in raw:
            raise InputError(
                f"the observation has no {key!r}; it has {', '.join(raw) if hasattr(raw, 'keys') else raw}"
            )
        raw = raw[part]
    return raw


def _reader(source: str) -> Callable[[Any, mujoco.MjModel, mujoco.MjData], float]:
    """A function that reads one component of the state (`Suite.state`)."""
    match = re.fullmatch(r"([^\[]*)\[(.+)\]", source)
    if match is None:
        raise InputError(f"state: {source!r} is neither KEY[INDEX] nor qpos[JOINT]")
    key, index = match.groups()
    if index.isdigit():
        return lambda raw, model, data: float(np.ravel(_entry(raw, key))[int(index)])
    if key != "qpos":
        raise InputError(f"state: {source!r} is neither KEY[INDEX] nor qpos[JOINT]")

    def read(raw: Any, model: mujoco.MjModel, data: mujoco.MjData) -> float:
        values = data.joint(index).qpos
        if len(values) != 1:
            raise InputError(f"state: the joint {index} has {len(values)} coordinates, not one")
        return float(values[0])

    return read

"""Adapts a policy of LeRobot (ACT, diffusion, SmolVLA, ...) to `Policy`.

| LeRobot feature         | observation                                                                    |
|-------------------------|--------------------------------------------------------------------------------|
| observation.images.NAME | images[NAME], as fractions of 255, channels first; `observation.image`, if one |
| observation.state       | state                                                                          |
| task                    | instruction                                                                    |
| action                  | the chunk's actions                                                            |

Values are not converted: the policy must have been trained in the embodiment's units, for example on a dataset of
`vla convert`. Names are changed by the checkpoint's `rename_observations_processor`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.models.hub import fetch
from vla.policies.data_summary import DataSummary, Range
from vla.types import ActionChunk, Observation, RTCPrefix

STATE, ACTION, IMAGE, IMAGES = "observation.state", "action", "observation.image", "observation.images."
CHECKPOINTS = ("pretrained_model", "checkpoints/last/pretrained_model")
"""Paths of the checkpoint in the folders of LeRobot's trainer."""


class LeRobotPolicy:
    """Action chunks of a LeRobot policy for one embodiment, clipped to its limits; None for values that are not finite.

    A policy with past observations (n_obs_steps > 1) needs every step: its chunks have one action, and it plans
    n_action_steps at a time.

    Raises:
        InputError: if cameras or widths are not those of the embodiment.
    """

    def __init__(self, policy: Any, before: Any, after: Any, embodiment: Embodiment) -> None:
        """`policy` is a PreTrainedPolicy; `before` and `after` are its pre- and post-processor."""
        self._policy, self._before, self._after, self._embodiment = policy, before, after, embodiment
        self._keys = _image_keys(policy.config, before, embodiment)
        self.data = DataSummary(_range(before, STATE), _range(after, ACTION))
        self.reset()

    @property
    def embodiment(self) -> Embodiment:
        """The robot."""
        return self._embodiment

    @property
    def takes_prefix(self) -> bool:
        """False: LeRobot's interface has no action prefix."""
        return False

    def reset(self) -> None:
        """Resets policy and processors."""
        for component in (self._policy, self._before, self._after):
            component.reset()

    @torch.inference_mode()
    def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk | None:
        """See `Policy.predict`. Raises InputError for a prefix, and for images of another size than in training."""
        if prefix is not None:
            raise InputError("a policy of LeRobot cannot start a chunk with an action prefix")
        batch = self._before(self._batch(observation))
        if self._policy.config.n_obs_steps > 1:
            predicted = self._after(self._policy.select_action(batch))[:, None]
        else:
            predicted = self._after(self._policy.predict_action_chunk(batch))
        actions = predicted[0].double().cpu().numpy()
        if not np.isfinite(actions).all():
            return None
        actions = np.clip(actions, self._embodiment.action_low, self._embodiment.action_high)
        return ActionChunk(actions, observation.time, 1 / self._embodiment.control_hz)

    def _batch(self, observation: Observation) -> dict[str, Any]:
        """A batch of one, as in LeRobot's own rollouts."""
        state = torch.from_numpy(np.asarray(observation.state, np.float32))[None]
        batch: dict[str, Any] = {STATE: state, "task": [observation.instruction], "robot_type": self._embodiment.name}
        for camera, (key, shape) in self._keys.items():
            if camera not in observation.images:
                raise InputError(f"camera {camera} is missing from the observation, which has {[*observation.images]}")
            image: Tensor = torch.from_numpy(np.ascontiguousarray(observation.images[camera])).permute(2, 0, 1)
            if tuple(image.shape) != shape:
                raise InputError(
                    f"the policy was trained on images of {camera} of {shape[2]} x {shape[1]} pixels, "
                    f"these have {image.shape[2]} x {image.shape[1]}: train it on this robot's images"
                )
            batch[key] = image[None].float() / 255
        return batch


def load_lerobot(name: str) -> Callable[[gymnasium.Env[Any, Any]], LeRobotPolicy]:
    """A function that returns the policy for an environment. Weights are loaded once; policies have separate state.

    Args:
        name: A checkpoint of LeRobot's trainer, the folder of one of its runs, or a model of the hub.

    Raises:
        InputError: if it cannot be loaded.
    """
    folder = fetch(name)
    folder = next((folder / path for path in CHECKPOINTS if (folder / path).is_dir()), folder)
    load = cache(lambda: _load(folder))

    def serve(env: gymnasium.Env[Any, Any]) -> LeRobotPolicy:
        policy, before, after = load()
        return LeRobotPolicy(copy(policy), before, after, env.unwrapped.embodiment)  # type: ignore[attr-defined]

    return serve


def _load(folder: Path) -> tuple[Any, Any, Any]:
    """The policy, its pre- and its post-processor."""
    if not (folder / "config.json").exists():
        raise InputError(f"{folder} is no policy of LeRobot: config.json is missing")
    import lerobot.policies  # noqa: F401 registers its policies
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    try:
        config = PreTrainedConfig.from_pretrained(folder)
        policy = get_policy_class(config.type).from_pretrained(folder, config=config, strict=True)
        device = {"device_processor": {"device": config.device}}
        before, after = make_pre_post_processors(config, str(folder), preprocessor_overrides=device)
    except ImportError as error:
        raise InputError(f"this policy needs more of LeRobot: {error}") from error
    except Exception as error:
        raise InputError(f"LeRobot cannot load {folder}: {error}") from error
    return policy.eval(), before, after


def _range(steps: Any, key: str) -> Range | None:
    """The range of the data in the normalization statistics of a processor; None without it."""
    for step in getattr(steps, "steps", ()):
        statistics = (getattr(step, "stats", None) or {}).get(key, {})
        if "min" in statistics and "max" in statistics:
            low, high = (tuple(np.ravel(statistics[end]).astype(float).tolist()) for end in ("min", "max"))
            return low, high
    return None


def _image_keys(config: Any, before: Any, embodiment: Embodiment) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The policy's key and shape (3, h, w) of each camera. Raises InputError if its features do not match."""
    renamed: Mapping[str, str] = {}
    for step in before.steps:
        renamed = getattr(step, "rename_map", renamed)
    required = {name: feature for name, feature in config.input_features.items() if "empty_camera" not in name}
    for kind, features in ((STATE, required), (ACTION, config.output_features)):
        names = embodiment.state if kind == STATE else embodiment.action
        if kind in features and tuple(features[kind].shape) != (len(names),):
            width = features[kind].shape
            raise InputError(f"the policy's {kind} has the shape {width}, {embodiment.name} has {len(names)}: {names}")
    required.pop(STATE, None)
    keys = {}
    for camera in embodiment.cameras:
        for key in (IMAGES + camera, IMAGE):
            if renamed.get(key, key) in required and (key != IMAGE or len(embodiment.cameras) == 1):
                keys[camera] = key, tuple(required.pop(renamed.get(key, key)).shape)
    if required:
        raise InputError(
            f"the policy needs {', '.join(sorted(required))}, {embodiment.name} has cameras "
            f"{', '.join(embodiment.cameras)} and the state: name the policy's features for the robot's "
            f"(such as {IMAGES}{embodiment.cameras[0]}) in rename_map, in the checkpoint's policy_preprocessor.json"
        )
    return keys

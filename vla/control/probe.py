"""Runs a policy once on a synthetic observation, before the robot is connected."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from vla.control.inference import PREFIXED, Request, predict
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.policies.data_summary import data_of
from vla.policies.history import FrameHistory
from vla.policies.policy import Policy, takes_prefix
from vla.types import Observation, RTCPrefix


def probe(policy: Policy, body: Embodiment, sizes: Mapping[str, tuple[int, int]], execution: str) -> None:
    """Runs the policy as the control loop will, on grey images. This also does its one-time initialization.

    Args:
        policy: The policy.
        body: The robot's embodiment.
        sizes: Height and width of the images by camera. The probe is skipped unless all cameras have a size.
        execution: The execution mode; it decides whether an action prefix is tried.

    Raises:
        InputError: for an observation that the policy rejects, and for actions with a width or rate that is not the
            robot's.
    """
    if not sizes.keys() >= set(body.cameras):
        return
    images = {camera: np.full((*sizes[camera], 3), 128, np.uint8) for camera in body.cameras}
    observation = FrameHistory.of(policy).with_past_frames(
        Observation(images, _state(policy, body), "probe", time.monotonic())
    )
    prefixes: list[RTCPrefix | None] = [None]
    if execution in PREFIXED and takes_prefix(policy):
        prefixes.append(RTCPrefix(body.hold_action(observation.state)[None]))
    for prefix in prefixes:
        try:
            (chunk,) = predict(policy, [Request(observation, prefix, 0)])
        except Exception as error:
            message = error if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            raise InputError(f"the policy cannot act on what this robot observes: {message}") from error
        if chunk is not None:
            body.check_action(chunk.actions)
            if abs(chunk.dt * body.control_hz - 1) > 1e-3:
                raise InputError(
                    f"the policy gives {1 / chunk.dt:g} actions a second, the robot takes {body.control_hz:g}: "
                    "set the robot's control_hz"
                )
    policy.reset()


def _state(policy: Policy, body: Embodiment) -> Float[np.ndarray, "s"]:
    """The median start state of the demonstrations; else the middle of the robot's range."""
    if (start := data_of(policy).start) is not None and len(start.median) == len(body.state):
        return np.array(start.median)
    state = np.zeros(len(body.state))
    for i, at in enumerate(body.measured_by):
        if at is not None and body.is_position_action[i]:
            state[at] = (body.action_low[i] + body.action_high[i]) / 2
    return state

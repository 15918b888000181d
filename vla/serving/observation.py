"""Reads a robot's message: maps its keys to the cameras, state and instruction of an observation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vla.control.inference import Request
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.types import Observation, RTCPrefix

PREFIX, TIME, ID = "vla/prefix", "vla/time", "vla/id"
"""Optional keys in addition to openpi's: the action prefix (k, a), the time of capture [s], and an id."""
LEFTOVER, VJP = "vla/beyond", "vla/vjp"
"""Optional keys for a policy with guidance: the previous chunk's actions after the prefix (m, a), and whether to use
vector-Jacobian products."""
PAST, RESET = "vla/past", "vla/reset"
"""Optional keys for a policy with past frames: the frames, oldest first, each a map of cameras to images, empty without
such a frame; or, if the server stores the frames, whether an episode begins."""
MAX_SIDE, MAX_ID = 4096, 64


@dataclass(frozen=True)
class Keys:
    """The keys of a message. A key is looked up directly, then as a path: `images/top` as `{"images": {"top": …}}`.

    Attributes:
        cameras: Key of the image by camera.
        state: Keys whose values are concatenated to the state.
        prompt: Key of the instruction.
        instruction: Default instruction for a message without one.
    """

    cameras: Mapping[str, str]
    state: Sequence[str]
    prompt: str = "prompt"
    instruction: str | None = None

    @classmethod
    def of(
        cls,
        embodiment: Embodiment,
        cameras: Mapping[str, str],
        state: Sequence[str],
        prompt: str = "prompt",
        instruction: str | None = None,
    ) -> Keys:
        """Fills in defaults: `images/CAMERA` for a camera without a key, `state` for no state keys.

        Raises:
            InputError: for a camera that the embodiment does not have.
        """
        if unknown := sorted(set(cameras) - set(embodiment.cameras)):
            raise InputError(f"cameras.{unknown[0]}: {embodiment.name} has the cameras {', '.join(embodiment.cameras)}")
        named = {camera: cameras.get(camera, f"images/{camera}") for camera in embodiment.cameras}
        return cls(named, tuple(state) or ("state",), prompt, instruction)


def read_request(
    message: Any,
    keys: Keys,
    embodiment: Embodiment,
    clock: Callable[[], float] = time.monotonic,
    fewer_cameras: bool = False,
    moments: int = 0,
) -> tuple[Request, int | str | None]:
    """Reads a message.

    Args:
        message: The decoded message.
        keys: Its keys.
        embodiment: The policy's embodiment.
        clock: Time of capture [s] for a message without one.
        fewer_cameras: Whether a message may lack some of the cameras.
        moments: Number of past frames in a message that has any.

    Returns:
        The inference request, and the id to return with the answer, None if the message has none.

    Raises:
        InputError: for a missing or invalid key, which it names.
    """
    if not isinstance(message, dict):
        raise InputError(f"an observation is a map of keys, not {type(message).__name__}")
    prompt = _instruction(message, keys)
    if not isinstance(prompt, str):
        raise InputError(f"{keys.prompt}: the instruction must be text, not {type(prompt).__name__}")
    sent = {camera: key for camera, key in keys.cameras.items() if _has(message, key)} if fewer_cameras else {}
    images = {camera: _image(key, _find(message, key)) for camera, key in (sent or keys.cameras).items()}
    state = [_numbers(key, np.atleast_1d(_as_array(key, _find(message, key)))) for key in keys.state]
    if any(values.ndim != 1 for values in state) or sum(map(len, state)) != len(embodiment.state):
        shapes = ", ".join(f"{key} {values.shape}" for key, values in zip(keys.state, state, strict=True))
        raise InputError(
            f"state: {shapes} are not the {len(embodiment.state)} of {embodiment.name}: {embodiment.state}"
        )
    captured, name, vjp = message.get(TIME), message.get(ID), message.get(VJP, False)
    committed, leftover = (_actions(key, message.get(key), len(embodiment.action)) for key in (PREFIX, LEFTOVER))
    if leftover is not None and committed is None or not isinstance(vjp, bool):
        raise InputError(f"{LEFTOVER} comes with {PREFIX}, and {VJP} is true or false")
    if captured is None:
        captured = clock()
    elif not isinstance(captured, int | float) or not np.isfinite(captured):
        raise InputError(f"{TIME}: not a finite number of seconds")
    if not (name is None or isinstance(name, int) or isinstance(name, str) and len(name) <= MAX_ID):
        raise InputError(f"{ID}: neither a whole number nor text of at most {MAX_ID} characters")
    past = _past(message.get(PAST), embodiment, moments)
    observation = Observation(images, np.concatenate(state), str(prompt), float(captured), past)
    prefix = None if committed is None else RTCPrefix(committed, leftover, "vjp" if vjp else "identity")
    return Request(observation, prefix, 0), name


def _instruction(message: Mapping[Any, Any], keys: Keys) -> Any:
    """The message's instruction; the server's default if it is missing or empty."""
    try:
        sent = _find(message, keys.prompt)
    except InputError as error:
        if keys.instruction is None:
            raise InputError(f"{error}; or set a default in `vla serve`, instruction=TEXT") from None
        return keys.instruction
    return keys.instruction if keys.instruction is not None and sent in (None, "") else sent


def _past(value: Any, embodiment: Embodiment, moments: int) -> tuple[dict[str, UInt8[np.ndarray, "_h _w 3"]], ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or len(value) != moments or not all(isinstance(v, dict) for v in value):
        raise InputError(f"{PAST}: this policy takes a list of {moments} maps of cameras to images")
    return tuple(
        {camera: _image(f"{PAST}/{camera}", images[camera]) for camera in embodiment.cameras if camera in images}
        for images in value
    )


def _actions(key: str, value: Any, width: int) -> Float[np.ndarray, "k a"] | None:
    if value is None:
        return None
    actions = _numbers(key, _as_array(key, value))
    if actions.ndim != 2 or actions.shape[1] != width or not len(actions):
        raise InputError(f"{key}: shape {actions.shape}, not (k, {width})")
    return actions


def _find(message: Mapping[Any, Any], key: str) -> Any:
    if key in message:
        return message[key]
    value: Any = message
    for part in key.split("/"):
        if not isinstance(value, dict) or part not in value:
            raise InputError(f"{key}: missing; sent are {', '.join(sorted(map(str, message)))[:500] or 'no keys'}")
        value = value[part]
    return value


def _has(message: Mapping[Any, Any], key: str) -> bool:
    try:
        _find(message, key)
        return True
    except InputError:
        return False


def _as_array(key: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(f"{key}: lists of different lengths") from error
    if array.dtype.kind not in "iuf":
        raise InputError(f"{key}: must hold numbers, not {type(value).__name__} of {array.dtype}")
    return array


def _numbers(key: str, array: np.ndarray) -> Float[np.ndarray, "*n"]:
    """A writable copy as float32 or float64 in native byte order; keeps the precision of floats."""
    width = np.promote_types(array.dtype.newbyteorder("="), np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{key}: holds a number that is not finite")
    return array.astype(np.float64 if width.itemsize > 8 else width)


def _image(key: str, value: Any) -> UInt8[np.ndarray, "h w 3"]:
    """An image of shape (h, w, 3), or (3, h, w) as sent by ALOHA's robots."""
    shape: tuple[int, ...] = value.shape if isinstance(value, np.ndarray) else ()
    if len(shape) == 3 and value.dtype == np.uint8 and 3 in (shape[0], shape[2]):
        image = value if shape[2] == 3 else value.transpose(1, 2, 0)
        if min(image.shape[:2]) > 0 and max(image.shape[:2]) <= MAX_SIDE:
            return np.array(image, order="C")
    description = f"{value.dtype} of shape {shape}" if isinstance(value, np.ndarray) else type(value).__name__
    raise InputError(f"{key}: an image is uint8 of shape (h, w, 3), sides at most {MAX_SIDE}, not {description}")

"""Which keys of a robot's message are the cameras and the state of our embodiment."""

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
from vla.types import Observation

PREFIX, TIME, ID = "vla/prefix", "vla/time", "vla/id"
"""What a client may send beside openpi's keys: the actions under way (k, a), the time of capture [s], an id."""
BEYOND, VJP = "vla/beyond", "vla/vjp"
"""And to a policy that can be guided: the old chunk's actions after those (m, a), and whether by vector products."""
PAST, RESET = "vla/past", "vla/reset"
"""And to a policy that is shown past frames: these, oldest first, each a map of cameras to images, empty where there
was none yet; or, where the server is to keep them, whether an episode begins."""
MAX_SIDE, MAX_ID = 4096, 64


@dataclass(frozen=True)
class Keys:
    """`cameras`: the key of each camera's image; `state`: keys whose values, in order, are the state; `prompt`: that of
    the instruction, which is `instruction` where a message has none.

    A key is looked up as it is, then as a path: `images/top` is also `{"images": {"top": ...}}`.
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
        """Cameras not named are `images/CAMERA`, no state is `state`. Raises InputError for a camera it has not."""
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
    """What a message asks, and the id that is to come back with the answer, None where it has none.

    With `fewer_cameras` a message may lack some of the cameras. Past frames, if a message has any, are of so many
    `moments`. Raises InputError that names the key that is missing or does not fit.
    """
    if not isinstance(message, dict):
        raise InputError(f"an observation is a map of keys, not {type(message).__name__}")
    prompt = _instruction(message, keys)
    if not isinstance(prompt, str):
        raise InputError(f"{keys.prompt}: the instruction must be text, not {type(prompt).__name__}")
    sent = {camera: key for camera, key in keys.cameras.items() if _has(message, key)} if fewer_cameras else {}
    images = {camera: _image(key, _find(message, key)) for camera, key in (sent or keys.cameras).items()}
    parts = [_numbers(key, np.atleast_1d(_as_array(key, _find(message, key)))) for key in keys.state]
    if any(part.ndim != 1 for part in parts) or sum(map(len, parts)) != len(embodiment.state):
        shapes = ", ".join(f"{key} {part.shape}" for key, part in zip(keys.state, parts, strict=True))
        raise InputError(
            f"state: {shapes} are not the {len(embodiment.state)} of {embodiment.name}: {embodiment.state}"
        )
    captured, name, vjp = message.get(TIME), message.get(ID), message.get(VJP, False)
    prefix, previous_chunk_leftover = (
        _actions(key, message.get(key), len(embodiment.action)) for key in (PREFIX, BEYOND)
    )
    if previous_chunk_leftover is not None and prefix is None or not isinstance(vjp, bool):
        raise InputError(f"{BEYOND} comes with {PREFIX}, and {VJP} is true or false")
    if captured is None:
        captured = clock()
    elif not isinstance(captured, int | float) or not np.isfinite(captured):
        raise InputError(f"{TIME}: not a finite number of seconds")
    if not (name is None or isinstance(name, int) or isinstance(name, str) and len(name) <= MAX_ID):
        raise InputError(f"{ID}: neither a whole number nor text of at most {MAX_ID} characters")
    past = _past(message.get(PAST), embodiment, moments)
    seen = Observation(images, np.concatenate(parts), str(prompt), float(captured), past)
    return Request(seen, prefix, 0, previous_chunk_leftover, vjp), name


def _instruction(message: Mapping[Any, Any], keys: Keys) -> Any:
    """What the message asks for; where it has nothing there, or an empty text, what the server was told to ask for."""
    try:
        sent = _find(message, keys.prompt)
    except InputError as error:
        if keys.instruction is None:
            raise InputError(f"{error}; or give `vla serve` one for all, instruction=TEXT") from None
        return keys.instruction
    return keys.instruction if keys.instruction is not None and sent in (None, "") else sent


def _past(value: Any, embodiment: Embodiment, moments: int) -> tuple[dict[str, UInt8[np.ndarray, "_h _w 3"]], ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or len(value) != moments or not all(isinstance(v, dict) for v in value):
        raise InputError(f"{PAST}: a list of {moments} maps of cameras to images, for this policy")
    return tuple(
        {camera: _image(f"{PAST}/{camera}", images[camera]) for camera in embodiment.cameras if camera in images}
        for images in value
    )


def _actions(key: str, value: Any, width: int) -> Float[np.ndarray, "k a"] | None:
    if value is None:
        return None
    given = _numbers(key, _as_array(key, value))
    if given.ndim != 2 or given.shape[1] != width or not len(given):
        raise InputError(f"{key}: shape {given.shape}, not (k, {width})")
    return given


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
    """A copy (the message is read-only) in a float of the machine's byte order, of its own width where it is one."""
    width = np.promote_types(array.dtype.newbyteorder("="), np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{key}: holds a number that is not finite")
    return array.astype(np.float64 if width.itemsize > 8 else width)


def _image(key: str, value: Any) -> UInt8[np.ndarray, "h w 3"]:
    """An image of (h, w, 3), or (3, h, w) as ALOHA's robots send it."""
    shape: tuple[int, ...] = value.shape if isinstance(value, np.ndarray) else ()
    if len(shape) == 3 and value.dtype == np.uint8 and 3 in (shape[0], shape[2]):
        image = value if shape[2] == 3 else value.transpose(1, 2, 0)
        if min(image.shape[:2]) > 0 and max(image.shape[:2]) <= MAX_SIDE:
            return np.array(image, order="C")
    what = f"{value.dtype} of shape {shape}" if isinstance(value, np.ndarray) else type(value).__name__
    raise InputError(f"{key}: an image is uint8 of shape (h, w, 3), sides at most {MAX_SIDE}, not {what}")

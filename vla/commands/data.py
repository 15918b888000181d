"""`vla data`: inspects, checks and edits stores, and makes new stores from existing ones."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal, get_args, get_origin

from vla.common.plural import counted
from vla.common.source_signature import signature_of
from vla.errors import InputError, unknown


def data(*, action: str, path: str, **options: object) -> None:
    """Applies one of `ACTIONS` to the store at `path`; options that are None are not set.

    Raises:
        InputError: The action is unknown, or an option does not apply to it, is missing or has the wrong type. Nothing
            is written in this case.
    """
    if action not in ACTIONS:
        raise unknown("action", action, ACTIONS)
    parameters = signature_of(ACTIONS[action])
    arguments = {name: value for name, value in options.items() if value is not None}
    for name, value in arguments.items():
        if name not in parameters:
            owners = " and ".join(known for known in ACTIONS if name in signature_of(ACTIONS[known]))
            value = " ".join(map(str, value)) if name == "others" and isinstance(value, list) else value
            raise InputError(f"vla data {action} cannot use {name}={value}: it belongs to vla data {owners}")
        kind, expected = TYPES[name]
        if not _is(value, kind):
            raise InputError(f"{name}={value}: {name} takes {expected}")
    required = [name for name, parameter in list(parameters.items())[1:] if parameter.default is parameter.empty]
    if missing := [name for name in required if name not in arguments]:
        raise InputError(f"vla data {action} needs {', '.join(f'{name}=…' for name in missing)}; see vla data --help")
    _function(action)(path, **arguments)


def check(path: str, *, repair: bool = False) -> None:
    """Reads every episode and compares it with its checksum.

    Args:
        path: The store.
        repair: Removes data after the last complete episode, partially written files, and the lock that a killed
            writer left in an object store.

    Raises:
        InputError: Episodes are damaged; the message lists them.
    """
    from tqdm import tqdm

    from vla.datasets.episodes import EpisodeStore

    damaged = []
    with EpisodeStore.open(path, "a" if repair else "r", break_lock=repair) as store:
        for index in tqdm(range(len(store)), desc="check", unit="episode"):
            try:
                store[index]
            except InputError as error:
                damaged.append(str(error))
        if repair:
            removed = store.trim()
            print(f"{path}: removed {removed} steps of an unfinished episode")
        elif left := store.unfinished_frames:
            print(f"{path}: {left} steps of an unfinished episode; repair=true removes them")
        count = len(store)
    if damaged:
        raise InputError(f"{len(damaged)} of {counted(count, 'episode')} of {path} damaged: {'; '.join(damaged)}")
    print(f"{path}: {counted(count, 'episode')}, all sound")


def _function(action: str) -> Callable[..., None]:
    """The function of an action, with the import of its module."""
    module, _, name = ACTIONS[action].partition(":")
    function: Callable[..., None] = getattr(import_module(module), name)
    return function


ACTIONS = {
    "info": "vla.datasets.tools.info:info",
    "check": "vla.commands.data:check",
    "doctor": "vla.datasets.doctor.diagnose:doctor",
    "merge": "vla.datasets.tools.copies:merge",
    "split": "vla.datasets.tools.copies:split",
    "filter": "vla.datasets.tools.copies:filter",
    "delete": "vla.datasets.tools.edits:delete",
    "edit": "vla.datasets.tools.edits:edit",
    "rename": "vla.datasets.tools.edits:rename",
    "migrate": "vla.datasets.tools.migrate:migrate",
    "derive": "vla.datasets.tools.derive:derive",
}
"""The function of each action, as module:name."""
TYPES: dict[str, tuple[Any, str]] = {
    "others": (list[str], "paths of stores"),
    "out": (str, "a path"),
    "html": (str, "a file"),
    "episodes": (str, "numbers and ranges: 3,7,9:12"),
    "success": (Literal[True, False, "unknown"], "true, false or unknown"),
    "instruction": (str, "a text"),
    "paraphrases": (list[str], "a list of texts: 'paraphrases=[lift it, pick it up]'"),
    "min_steps": (int, "a whole number"),
    "max_steps": (int, "a whole number"),
    "parts": (dict[str, float], "names with their shares: 'parts={train: 0.9, test: 0.1}'"),
    "seed": (int, "a whole number"),
    "embodiment": (str, "a name"),
    "cameras": (dict[str, str], "names: 'cameras={old: new}'"),
    "components": (dict[str, str], "names: 'components={elbow: elbow [rad]}'"),
    "instructions": (dict[str, str], "texts: 'instructions={old words: new words}'"),
    "repair": (bool, "true or false"),
    "actions": ((str, dict), "a mode, or modes by name: 'actions={x: delta, gripper: absolute}'"),
    "grippers": (list[str], "a list of names"),
    "rotations": (dict[str, list[str]], "names by representation: 'rotations={euler_xyz: [roll, pitch, yaw]}'"),
    "model": (str, "so101, so101_pair, or an MJCF or URDF file"),
    "tool": ((str, list), "a site or body of the model, of two arms a list: 'tool=[left_tip, right_tip]'"),
    "rotation": (str, "6d, axis_angle, quaternion, or euler_xyz and the like"),
    "joints": (dict, "the component of each joint: \"joints={joint: 'component [rad]'}\""),
    "units": (str, "rad or deg"),
    "keep_joints": (bool, "true or false"),
    "drop": (str, "numbers and ranges: 3,7,9:12"),
    "drop_cameras": (list[str], "names of cameras: 'drop_cameras=[wrist]'"),
    "trim": (float, "seconds"),
    "steps": (dict[int, str | int], "steps by episode: 'steps={3: \"10:80\"}'"),
    "action_shift": (int, "a whole number of steps"),
    "action_offset": (dict[str | int, float], "amounts by action component: 'action_offset={elbow_flex: -0.1}'"),
    "bgr": (list[str], "names of cameras: 'bgr=[front]'"),
    "upside_down": (list[str], "names of cameras: 'upside_down=[front]'"),
    "images": (bool, "true or false"),
    "json": (str, "a file"),
}
"""The type of each option, and a description of its values."""


def _is(value: object, kind: Any) -> bool:
    """Whether the value has the type, including the types of its elements."""
    inner = get_args(kind)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_is(k, inner[0]) and _is(v, inner[1]) for k, v in value.items())
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is(element, inner[0]) for element in value)
    if get_origin(kind) is Literal:
        return isinstance(value, bool | str) and value in inner
    types = (int, float) if kind is float else kind
    return isinstance(value, types) and (kind is bool or not isinstance(value, bool))

"""Builds LeRobot's robots from their type and options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from vla.errors import InputError, suggestion


def build(type: str, options: Mapping[str, Any]) -> Any:
    """Builds LeRobot's robot of this type.

    Raises:
        InputError: for an unknown type, for options that its config rejects, and for a missing package.
    """
    from lerobot.cameras import CameraConfig
    from lerobot.robots import RobotConfig, make_robot_from_config
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    for camera in _camera_types(options):
        _choice(CameraConfig, "lerobot.cameras", camera)
    config = _decode(_choice(RobotConfig, "lerobot.robots", type), type, options)
    try:
        return make_robot_from_config(config)
    except Exception as error:
        raise InputError(f"LeRobot's {type} cannot be built: {error}") from error


def _decode(config: Any, type: str, options: Mapping[str, Any]) -> Any:
    import draccus

    try:
        return draccus.decode(config, {key: str(v) if isinstance(v, Path) else v for key, v in options.items()})
    except Exception as error:
        raise InputError(f"LeRobot's {type} does not take these options: {error}") from error


def _camera_types(options: Mapping[str, Any]) -> Iterator[str]:
    """The types of the cameras of the robot and of its arms."""
    for key, value in options.items():
        if key == "cameras":
            yield from (camera["type"] for camera in (value or {}).values() if "type" in camera)
        elif isinstance(value, Mapping):
            yield from _camera_types(value)


def _choice(registry: Any, package: str, name: str) -> Any:
    """The class registered under `name`. Importing a folder of `package` registers its classes.

    Folders with similar names are imported first, so that an existing name needs few imports.
    """
    folders = [module.name for module in iter_modules(import_module(package).__path__) if module.ispkg]
    failed = []
    for folder in sorted(folders, key=lambda folder: -SequenceMatcher(None, folder, name).ratio()):
        if name in registry.get_known_choices():
            break
        try:
            import_module(f"{package}.{folder}")
        except ImportError as error:
            failed.append(f"{folder} cannot be imported ({error})")
    choices = sorted(registry.get_known_choices())
    if name not in choices:
        more = "".join(f"; {reason}" for reason in failed)
        raise InputError(f"LeRobot has no {name!r}{suggestion(name, choices)}; choose {', '.join(choices)}{more}")
    return registry.get_choice_class(name)

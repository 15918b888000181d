"""Checks of the options of commands that operate an arm or record episodes; none imports MuJoCo, torch or LeRobot.

A command calls them for callers in Python, and `vla.commands.checks` before the command is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla.common.screen import has_screen, no_screen
from vla.control.config import LoopConfig
from vla.control.stop import stop_sources
from vla.datasets.codecs import codec as known_codec
from vla.errors import InputError, unknown
from vla.policies.load import REMOTE, check_deployable
from vla.robots.teleoperators.devices import DEVICES, open_device

NO_INSTRUCTION = "set the instruction: instruction='pick up the red cube'"
HEADLESS = "use device=script script=FILE (vla play --help)"


def check_seed(seed: int) -> None:
    """Raises InputError for a negative seed."""
    if seed < 0:
        raise InputError(f"the seed must be 0 or more, not {seed}")


def check_demonstrations(episodes: int, workers: int, noise: float, seed: int) -> None:
    """Raises InputError for invalid options of scripted demonstrations."""
    check_seed(seed)
    if episodes < 1 or workers < 1 or not 0 <= noise < 1:
        raise InputError(f"episodes and workers must be positive and noise in [0, 1): {episodes}, {workers}, {noise}")


def check_own_store(out: str, task: str) -> None:
    """Raises InputError if an operator's demonstrations would go to the store of the scripted expert."""
    if out == f"outputs/{task}.zarr":
        raise InputError("set the store for the demonstrations: out=outputs/NAME.zarr")


def check_teleoperation(
    *,
    teleop: str,
    episodes: int,
    seconds: float,
    pause: float | None,
    joystick: str,
    script: str | None,
    leader_port: str | None,
    **_: Any,
) -> None:
    """Raises InputError for invalid options of an operator's demonstrations, and for a device that is not available."""
    if episodes < 1 or seconds <= 0 or (pause is not None and pause < 0):
        raise InputError(f"episodes and seconds must be above 0, pause 0 or more: {episodes}, {seconds}, {pause}")
    if teleop not in ("leader", *DEVICES):
        raise unknown("teleop", teleop, ("leader", *DEVICES))
    if teleop == "script" and pause:
        raise InputError(f"pause={pause:g}: a script has no pause, its episodes begin with their first movement")
    if teleop != "leader":
        check_device(teleop, joystick, script)
    elif leader_port is None:
        raise InputError("teleop=leader needs leader_port=…, its serial port: `vla doctor` lists the serial ports")
    else:
        check_serial_port("leader_port", leader_port)


def check_terminal(teleop: str, pause: float | None, *, is_open: bool) -> None:
    """Raises InputError if the operator's keys cannot be read: there is no terminal."""
    if not is_open and (teleop == "keyboard" or (teleop == "leader" and pause is None)):
        raise InputError(f"teleop={teleop} needs a terminal for its keys; a leader needs none with pause=SECONDS")


def check_play(device: str, joystick: str, script: str | None, seed: int) -> None:
    """Raises InputError for an invalid option of `vla play`, and for a device or a screen that is not available."""
    check_seed(seed)
    check_device(device, joystick, script)
    if device != "script" and not has_screen():
        raise no_screen(HEADLESS)


def check_device(name: str, joystick: str, script: str | None) -> None:
    """Raises InputError unless the input device can be opened; it is closed again."""
    if name == "script" and script is not None and Path(script).exists() and not Path(script).is_file():
        return  # a pipe can be read only once
    with ExitStack() as stack:
        open_device(name, joystick, script, stack)


def check_serial_port(option: str, port: str) -> None:
    """Raises InputError if the serial port does not exist."""
    if not Path(port).exists():
        raise InputError(f"{option}={port} does not exist; `vla doctor` lists the serial ports")


def check_stop_sources(file: str | None, gamepad: str | None) -> None:
    """Raises InputError for a stop file that exists already, and for a gamepad that is not available."""
    with ExitStack() as stack:
        stop_sources(file, gamepad, stack)


def check_emulation(seed: int, image_size: int, camera_port: int, fps: float) -> None:
    """Raises InputError for an invalid option of `vla so101-sim`."""
    check_seed(seed)
    if fps <= 0 or image_size < 1 or not 0 <= camera_port < 65536:
        raise InputError(
            f"fps={fps} image_size={image_size} camera_port={camera_port}: fps and image_size are above 0, a port is "
            "below 65536"
        )


def check_deploy(
    *,
    policy: str,
    seconds: float,
    loop: Mapping[str, Any],
    lost: float,
    dry_run: bool,
    record: bool,
    codec: str | None,
    **_: Any,
) -> LoopConfig:
    """The loop configuration. Raises InputError for options that are invalid or do not fit each other."""
    check_deployable(policy)
    if seconds <= 0 or lost <= 0:
        raise InputError(f"seconds and lost must be above 0, not {seconds:g} and {lost:g}")
    if codec is not None:
        known_codec(codec)
        if not record or dry_run:
            raise InputError("codec= applies to the episode, which is not stored with record=false or dry_run=true")
    config = loop_config(loop, policy, lost)
    if dry_run and config.end != "hold":
        raise InputError(f"loop.end={config.end} moves the arm: leave it out with dry_run=true")
    return config


def loop_config(loop: Mapping[str, Any], policy: str, lost: float) -> LoopConfig:
    """The loop configuration for a policy.

    For a server the inference timeout is at least `lost` [s]; "hold" has no limit on invalid action chunks.
    """
    config = LoopConfig(**loop)
    if policy.startswith(REMOTE):
        return replace(config, inference_timeout_s=max(config.inference_timeout_s, lost))
    return replace(config, invalid=None) if policy == "hold" else config

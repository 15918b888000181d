"""Descriptions of third-party environments: YAML files in configs/env/ or of the user."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vla.errors import InputError


@dataclass
class Camera:
    """A camera of the model by name, or a free camera that looks at a point [m] from a distance [m]."""

    camera: str | None = None
    lookat: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    distance: float = 1.5
    azimuth: float = 90.0
    """As `elevation`, the angle of MuJoCo's free camera [degrees]."""
    elevation: float = -30.0
    height: int = 96
    width: int = 96
    upside_down: bool = False
    """Whether the camera is mounted upside down; its image is rotated by 180 degrees."""


@dataclass
class Suite:
    """The keys of a file. Keys of a task in `tasks` override them, and `${task}` is the name of the task."""

    id: str = MISSING
    """The Gymnasium id with the module that registers it: "gymnasium_robotics:FetchReach-v4"."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of `gymnasium.make`."""
    needs: str = ""
    """The package to install."""
    robot: str = MISSING
    """The name of the embodiment."""
    instruction: list[str] = field(default_factory=list)
    """One or several phrasings; empty if the info of `reset` has an "instruction"."""
    cameras: dict[str, Camera] = MISSING
    state: dict[str, str] = MISSING
    """Each component with its unit, and its source: KEY[INDEX] of the observation (A/B[0] if nested, [0] if it is an
    array), or qpos[JOINT]."""
    action: dict[str, list[float] | None] = MISSING
    """Each component with its unit, and its limits; null: those of the action space."""
    action_mode: Any = MISSING
    """absolute, delta, velocity or force; for all components, or by name in `action`."""
    grippers: list[str] = field(default_factory=list)
    """The gripper components of the action."""
    control_hz: float = MISSING
    max_steps: int = MISSING
    success: str | None = None
    """The entry of `info` that is true on success; alternative to `success_reward`."""
    success_reward: float | None = None
    """The minimum reward on success."""
    sites: dict[str, str] = field(default_factory=dict)
    """Sites of the model, rendered at the position in an entry of the observation, such as a goal."""
    model: str = "model"
    """The attribute (a.b.c) of the environment's mjModel; `data` is that of its mjData."""
    data: str = "data"
    expert: str | None = None
    """module:function, which returns a function from the environment's observation to an action."""
    task: str = ""


def _read(name: str) -> dict[str, Any] | None:
    """The content of a suite's file, at the path NAME.yaml or in configs/env/; None if it does not exist."""
    file = Path(name) if name.endswith(".yaml") else files("vla.configs") / "env" / f"{name}.yaml"
    if not file.is_file():
        return None
    try:
        content: Any = OmegaConf.to_container(OmegaConf.create(file.read_text()), resolve=False)
    except Exception as error:  # the parser's errors have no common base class
        raise InputError(f"{name} is not YAML: {' '.join(str(error).split())}") from error
    sections = [content, content.get("tasks", {}), content.get("groups", {})] if isinstance(content, dict) else [None]
    if not all(isinstance(section, dict) for section in sections):
        raise InputError(
            f"{name}: it, its tasks and its groups must be names with values, as in configs/env/fetch.yaml"
        )
    return content


def _split(name: str) -> tuple[dict[str, Any], str, str] | None:
    """The content, suite and task of SUITE/TASK, PATH.yaml or PATH.yaml/TASK; None for other names."""
    path, yaml, task = name.partition(".yaml")
    suite, task = (path + yaml, task.removeprefix("/")) if yaml else (name.partition("/")[0], name.partition("/")[2])
    if not yaml and not suite.isidentifier():
        return None
    content = _read(suite)
    if content is None and yaml:
        raise InputError(f"there is no file {suite}")
    return None if content is None else (content, suite, task)


def is_suite(name: str) -> bool:
    """Whether the name is that of a third-party environment. Raises InputError if it names a missing file."""
    return _split(name) is not None


def tasks_of(name: str) -> tuple[str, ...]:
    """The full names of the tasks of a group ("metaworld/mt10") or suite ("fetch"); else `name` itself."""
    found = _split(name)
    if found is None:
        return (name,)
    content, suite, task = found
    groups, tasks = content.get("groups", {}), content.get("tasks", {})
    members = (groups.get(task) or tasks) if task in groups or not task else ()
    return tuple(f"{suite}/{member}" for member in members) or (name,)


def suites() -> Iterator[str]:
    """The names of the suites in configs/env/."""
    yield from sorted(f.name.removesuffix(".yaml") for f in (files("vla.configs") / "env").iterdir())


def read_suite(name: str) -> Suite:
    """Reads the description of SUITE/TASK, PATH.yaml or PATH.yaml/TASK.

    Raises:
        InputError: a key is unknown, missing or of the wrong type, or the task does not exist.
    """
    found = _split(name)
    assert found is not None, name
    content, suite, task = found
    shared = {key: value for key, value in content.items() if key not in ("tasks", "groups")}
    tasks: dict[str, Any] = content.get("tasks", {})
    if len(several := tasks_of(name)) > 1:
        raise InputError(f"{name} is several tasks: select one, or sweep over them: -m task={','.join(several)}")
    if task not in tasks if tasks else task:
        known = ", ".join(tasks) or "one, without a name"
        raise InputError(f"{suite} has no task {task!r}; it has: {known}")
    layers: list[dict[str, Any]] = [shared, (tasks[task] or {}) if tasks else {}, {"task": task}]
    for layer in layers:
        if isinstance(layer.get("instruction"), str):
            layer["instruction"] = [layer["instruction"]]
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Suite), *layers)
        if missing := OmegaConf.missing_keys(merged):
            raise InputError(f"{name}: set {', '.join(sorted(missing))}")
        value = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise InputError(f"{name}: {str(error).splitlines()[0]}") from error
    assert isinstance(value, Suite)
    if (value.success is None) == (value.success_reward is None):
        raise InputError(f"{name}: set either success or success_reward")
    return value

"""Fast checks of the options of a command: unknown names and paths that do not exist.

Each function takes the options of one command as plain values and raises InputError for invalid ones. It returns
overrides for options that follow from others, such as the task of a simulated robot from that of the policy. None
imports slow modules (torch, MuJoCo), so that an invalid option is reported within a second.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vla.commands.arguments import quoted
from vla.errors import InputError, suggestion, unknown
from vla.models.hub import HUB_NAME

SCENES = "scenes"
REMOTE = re.compile(r"\w+://")
HOSTED, HUB = "hosted:", "hub:"


Overrides = list[str]


def record(*, task: str, codec: str, robot: Mapping[str, Any] | None, **_: Any) -> Overrides:
    """Checks codec, task and robot."""
    from vla.datasets.codecs import codec as known_codec

    known_codec(codec)
    if robot is None:
        check_task(task, SCENES)
        _check_rendering()
        return []
    return _robot(robot, lambda: task)


def train(
    *,
    task: str | None,
    data: str | Mapping[str, str] | None,
    vqa: Mapping[str, str],
    mixture: Mapping[str, float],
    backbone: str | Mapping[str, Any],
    plan: Mapping[str, Any],
    stages: Mapping[str, Any],
    **_: Any,
) -> None:
    """Checks training options, stores and backbone."""
    from vla.training.train_config import make_train_config

    make_train_config(plan)
    if data == f"outputs/{task}.zarr" and not Path(data).exists():
        known = tasks()
        if task not in known:
            raise InputError(f"there is no task {task!r}{suggestion(task, known)}; and no store {data}")
        raise InputError(f"there is no store {data}: `vla record task={task}` makes it, or set data= to another store")
    if not stages:
        check_stores(data)
    for name, path in vqa.items():
        if mixture.get(name, 0) > 0:
            check_store(path, f"`vla record task=scenes out={path}` makes one; mixture.{name}=0 trains without it")
    if isinstance(backbone, str):
        check_backbone(backbone)


def train_tokenizer(*, data: str | Mapping[str, str], **_: Any) -> None:
    """Checks the stores."""
    check_stores(data)


def evaluate(
    *,
    policy: str,
    task: str | None,
    seeds: str,
    phrasing: str,
    axes: Sequence[str],
    axes_report: Sequence[str],
    vqa: str | None,
    **_: Any,
) -> None:
    """Checks policy, task, seeds, phrasing, axes and the store of questions."""
    from vla.envs.axes import check_axis_names
    from vla.envs.instructions import check_phrasing
    from vla.evaluation.evaluation_options import parse_seeds
    from vla.policies.load import REMOTE as SERVERS
    from vla.policies.load import check_policy, tasks_trained_on

    parse_seeds(seeds)
    check_phrasing(phrasing)
    check_axis_names([*axes, *axes_report])
    check_policy(policy)
    if vqa is not None and not REMOTE.match(vqa) and not Path(vqa).exists():
        raise InputError(f"no VQA store at {vqa}{_near(vqa)}: `vla record task=scenes out={vqa}` makes one")
    if task is not None:
        check_task(task)
    elif not policy.startswith((HUB, *SERVERS)):
        _check_installed(policy, tasks_trained_on(policy))
    _check_rendering()


def deploy(*, policy: str, robot: Mapping[str, Any], **_: Any) -> Overrides:
    """Checks policy and robot; returns the task of a simulated robot."""
    from vla.policies.load import check_policy, tasks_trained_on

    check_policy(policy)

    def trained_on() -> str:
        try:
            found = tasks_trained_on(policy)
        except InputError as error:
            print(f"robot.task=pick: {error}", flush=True)
            return "pick"
        if len(found) > 1:
            raise InputError(f"{policy} was trained on {', '.join(found)}: choose one, such as robot.task={found[0]}")
        print(f"robot.task={found[0]}: {policy} was trained on it" if policy != "hold" else f"robot.task={found[0]}")
        return found[0]

    return _robot(robot, trained_on)


def serve(*, policy: str, host: str, port: int, key_file: str | None, max_clients: int, max_mb: int, **_: Any) -> None:
    """Checks address and policy."""
    from vla.commands.serve import check_address
    from vla.policies.load import check_policy

    check_address(host, port, key_file, max_clients, max_mb)
    check_policy(policy)


def robot(*, action: str, pose: Mapping[str, float] | None, robot: Mapping[str, Any], **_: Any) -> Overrides:
    """Checks action, pose and robot."""
    if action not in (actions := ("status", "clear", "disable_torque", "home")):
        raise unknown("action", action, actions)
    if pose is not None and action != "home":
        raise InputError(f"pose= applies to home only, not to {action}")
    return _robot(robot, lambda: "pick")


def push(*, policy: str, **_: Any) -> None:
    """Checks the folder of the checkpoint."""
    if not Path(policy).is_dir():
        raise InputError(f"there is no folder {policy}{_near(policy)}")


def benchmark(*, benchmark: str, data: str, policy: str, **_: Any) -> None:
    """Checks benchmark, data and model."""
    from vla.evaluation.vlm.scoring.registry import benchmark as known

    known(benchmark)
    if not Path(data).exists():
        raise InputError(f"data={data} does not exist{_near(data)}")
    check_answerer(policy)


def probe(*, policy: str, **_: Any) -> None:
    """Checks the model, and that this machine can render scenes."""
    check_answerer(policy)
    _check_rendering()


def play(*, task: str, **_: Any) -> None:
    """Checks the task, and that this machine can render it."""
    check_task(task)
    _check_rendering()


so101_sim = play


def data(*, action: str, path: str, **_: Any) -> None:
    """Checks the action, and that there is something at the path."""
    from vla.commands.data import ACTIONS

    if action not in ACTIONS:
        raise unknown("action", action, ACTIONS)
    if not REMOTE.match(path) and not Path(path).exists() and not _has_backup(Path(path)):
        raise InputError(f"no episode store at {path}{_near(path)}: record one first (vla record)")


def view(*, path: str | None, task: str | None, **_: Any) -> None:
    """Checks the path, or the task and that this machine can render it."""
    from vla.datasets.format_registry import is_hub_name

    if (
        path is not None
        and task is None
        and not REMOTE.match(path)
        and not Path(path).exists()
        and not is_hub_name(path)
    ):
        raise InputError(f"cannot read {path}: nothing is there{_near(path)}")
    if task is not None:
        check_task(task)
        _check_rendering()


def demo(*, plan: Mapping[str, Any], **_: Any) -> None:
    """Checks training options, and that this machine can render."""
    from vla.training.train_config import make_train_config

    make_train_config(plan)
    _check_rendering()


def check_task(name: str, *more: str) -> None:
    """Raises InputError unless the task is a built-in task, one of `more`, a task of a suite, or a file."""
    from vla.envs.make import is_task
    from vla.envs.suites.config import suites

    known = [*tasks(), *more]
    if name not in more and not is_task(name):
        raise unknown("task", name, [*known, *(f"{suite}/TASK" for suite in suites()), "FILE.yaml"])


def _check_installed(policy: str, trained_on: Sequence[str]) -> None:
    """Raises InputError for a task that the policy was trained on, and that is of a package which is not installed."""
    from vla.envs.make import is_task

    if missing := [name for name in trained_on if not is_task(name)]:
        raise InputError(
            f"{policy} was trained on {', '.join(missing)}, which is no task of this environment: install its package, "
            "or choose another with task="
        )


def tasks() -> list[str]:
    """The names of the tasks, also of other packages."""
    from vla.envs import task_names

    return list(task_names())


def check_stores(data: str | Mapping[str, str] | None) -> None:
    """Applies `check_store` to each store of demonstrations."""
    for path in () if data is None else (data,) if isinstance(data, str) else data.values():
        check_store(path, "`vla record` makes one")


def check_store(path: str, cure: str) -> None:
    """Raises InputError if a local path cannot be a store; `cure` is part of the message."""
    if REMOTE.match(path):
        return
    if not (folder := Path(path)).exists():
        raise InputError(f"there is no store {path}{_near(path)}: {cure}")
    if (folder / "meta" / "info.json").is_file():
        command = shlex.join(["vla", "convert", path, f"outputs/{folder.resolve().name.partition('.')[0]}.zarr"])
        raise InputError(f"{path} is a LeRobotDataset: `{command}` converts it into a store")


def check_backbone(name: str) -> None:
    """Raises InputError for a backbone that is not a folder or a family and cannot be an id on the hub."""
    from vla.models.backbones.catalog import CATALOG

    known = [*(row.name for row in CATALOG if row.role == "backbone"), "scratch"]
    if name in known or Path(name).is_dir():
        return
    if Path(name).exists() or not re.fullmatch(HUB_NAME, name) or Path(name).parent.is_dir():
        near = suggestion(name, known) or _near(name)
        raise InputError(f"no backbone {name!r}{near}: use a checkpoint folder, a hub id, or a family of `vla models`")


def check_answerer(name: str) -> None:
    """Raises InputError for a model that `vla.evaluation.vlm.answerer.open_answerer` cannot open."""
    if name.startswith(HOSTED):
        from vla.evaluation.vlm.answerer import open_hosted

        open_hosted(name.removeprefix(HOSTED))
    elif not name.startswith(HUB):
        check_backbone(name)


def _near(path: str) -> str:
    """A suggestion: the file in the same folder whose name is most similar to that of the missing path."""
    folder = Path(path).parent
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    return suggestion(Path(path).name, names)


def _has_backup(store: Path) -> bool:
    """Whether a killed edit left the store under another name, from which the next edit restores it."""
    from vla.datasets.tools.atomic_store import backup_of

    return backup_of(store).exists()


def _robot(robot: Mapping[str, Any], default: Callable[[], str]) -> Overrides:
    """Checks the port of a real robot, or the task of a simulated one; `default` gives the task if it is null."""
    if "task" not in robot:
        check_port(robot)
        return []
    _check_rendering()
    task = default() if robot["task"] is None else robot["task"]
    check_task(task)
    return [f"robot.task={quoted(task)}"]


def check_port(robot: Mapping[str, Any]) -> None:
    """Raises InputError if the serial port of a robot does not exist."""
    for name, options in (("robot", robot), ("robot.options", robot.get("options") or {})):
        if (port := options.get("port")) is not None and not Path(port).exists():
            raise InputError(f"{name}.port={port} does not exist; `vla doctor` lists the serial ports")


def _check_rendering() -> None:
    from vla.common.rendering import check_rendering

    check_rendering()

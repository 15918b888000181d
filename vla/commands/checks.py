"""Fast checks of the options of a command: unknown names and paths that do not exist.

Each function takes the options of one command as plain values and raises InputError for invalid ones. It returns
overrides for options that follow from others, such as the task of a simulated robot from that of the policy. None
imports slow modules (torch, MuJoCo), so that an invalid option is reported within a second.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vla.commands.arguments import quoted
from vla.common.atomic import backup_of
from vla.common.renamed_keys import current_targets
from vla.errors import InputError, suggestion, unknown
from vla.models.hub import HUB_NAME

SCENES = "scenes"
REMOTE = re.compile(r"\w+://")
HOSTED, HUB = "hosted:", "hub:"


Overrides = list[str]


def record(
    *,
    task: str,
    codec: str,
    robot: Mapping[str, Any] | None,
    instruction: str | None,
    teleop: str,
    pause: float | None,
    out: str,
    seed: int,
    **options: Any,
) -> Overrides:
    """Checks codec, task and robot, and the options of an expert or an operator."""
    from vla.commands.operation_checks import (
        check_demonstrations,
        check_own_store,
        check_seed,
        check_stop_sources,
        check_teleoperation,
        check_terminal,
    )
    from vla.datasets.codecs import codec as known_codec
    from vla.envs.make import check_one_arm

    known_codec(codec)
    if robot is None:
        check_task(task, SCENES)
        check_seed(seed)
        if task != SCENES:
            check_demonstrations(options["episodes"], options["workers"], options["noise"], seed)
        _check_rendering()
        return []
    derived = _robot(robot, lambda: task)
    if "task" in robot:
        check_one_arm(robot["task"] or task)
    check_own_store(out, task)
    _check_instruction(instruction, robot)
    check_teleoperation(teleop=teleop, pause=pause, **options)
    check_terminal(teleop, pause, is_open=os.isatty(0))
    check_stop_sources(options["stop_file"], options["stop_gamepad"])
    return derived


def train(
    *,
    task: str | None,
    data: str | Mapping[str, str] | None,
    vqa: Mapping[str, str],
    mixture: Mapping[str, float],
    backbone: str | Mapping[str, Any],
    plan: Mapping[str, Any],
    stages: Mapping[str, Any],
    **options: Any,
) -> None:
    """Checks training options, stores and backbone."""
    from vla.training.run_options import RunOptions
    from vla.training.train_config import make_train_config

    make_train_config({**plan, "log": options["log"]})
    RunOptions(
        task=task, data=data, vqa=vqa, mixture=mixture, backbone=backbone, plan=plan, stages=stages, **options
    ).check()
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


def train_tokenizer(
    *, data: str | Mapping[str, str], out: str, horizon: int | float | str | None, scale: float, **_: Any
) -> None:
    """Checks the stores, the folder for the tokenizer and its options."""
    from vla.commands.train_tokenizer import check_options

    check_stores(data)
    check_options(out, horizon, scale)


def evaluate(
    *,
    policy: str,
    task: str | None,
    vqa: str | None,
    **options: Any,
) -> None:
    """Checks every option apart from those that depend on the policy's or the task's environment."""
    from vla.evaluation.evaluation_options import EvaluationOptions
    from vla.policies.load import REMOTE as SERVERS
    from vla.policies.load import check_policy, tasks_trained_on

    EvaluationOptions(policy=policy, task=task, vqa=vqa, **options).check_values()
    check_policy(policy)
    if vqa is not None and not REMOTE.match(vqa) and not Path(vqa).exists():
        raise InputError(f"no VQA store at {vqa}{_near(vqa)}: `vla record task=scenes out={vqa}` makes one")
    if task is not None:
        check_task(task)
    elif not policy.startswith((HUB, *SERVERS)):
        _check_installed(policy, tasks_trained_on(policy))
    _check_rendering()


def deploy(*, policy: str, robot: Mapping[str, Any], instruction: str | None, **options: Any) -> Overrides:
    """Checks policy, robot and control loop; returns the task of a simulated robot."""
    from vla.commands.operation_checks import check_deploy, check_stop_sources
    from vla.control.config import steps_of
    from vla.envs import CONTROL_HZ
    from vla.policies.load import check_policy, tasks_trained_on

    check_policy(policy)
    config = check_deploy(policy=policy, **options)
    if (policy_hz := CONTROL_HZ if "task" in robot else robot.get("control_hz")) is not None:
        steps_of(policy_hz, config.hz)
    check_stop_sources(options["stop_file"], options["stop_gamepad"])

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

    derived = _robot(robot, trained_on)
    _check_instruction(instruction, robot)
    return derived


def serve(*, policy: str, host: str, port: int, key_file: str | None, max_clients: int, max_mb: int, **_: Any) -> None:
    """Checks address and policy."""
    from vla.commands.serve import check_address
    from vla.policies.load import LEROBOT, SCRIPTED, check_policy
    from vla.policies.load import REMOTE as SERVERS

    check_address(host, port, key_file, max_clients, max_mb)
    if policy in SCRIPTED or policy.startswith((LEROBOT, *SERVERS)):
        raise InputError(f"vla serve takes a checkpoint folder or hub:user/model, not {policy}")
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


def probe(*, policy: str, probes: Sequence[str] | None, **_: Any) -> None:
    """Checks the model and the probes, and that this machine can render scenes."""
    from vla.evaluation.vlm.probes.names import check_names

    check_names(probes)
    check_answerer(policy)
    _check_rendering()


def play(*, task: str, device: str, joystick: str, script: str | None, seed: int, **_: Any) -> None:
    """Checks task, seed, input device and screen, and that this machine can render."""
    from vla.commands.operation_checks import check_play
    from vla.envs.make import check_one_arm

    check_task(task)
    check_one_arm(task)
    check_play(device, joystick, script, seed)
    _check_rendering()


def so101_sim(*, task: str, seed: int, image_size: int, camera_port: int, fps: float, **_: Any) -> None:
    """Checks the task and the options of the emulation, and that this machine can render."""
    from vla.commands.operation_checks import check_emulation
    from vla.envs.make import check_one_arm

    check_task(task)
    check_one_arm(task)
    check_emulation(seed, image_size, camera_port, fps)
    _check_rendering()


def data(*, action: str, path: str, **_: Any) -> None:
    """Checks the action, and that there is something at the path, or the backup of a killed edit."""
    from vla.commands.data import ACTIONS

    if action not in ACTIONS:
        raise unknown("action", action, ACTIONS)
    if not REMOTE.match(path) and not Path(path).exists() and not backup_of(Path(path)).exists():
        raise InputError(f"no episode store at {path}{_near(path)}: record one first (vla record)")


def view(*, path: str | None, task: str | None, seed: int, **_: Any) -> None:
    """Checks the path, or the task, its seed, and that this machine can render it."""
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
        from vla.commands.operation_checks import check_seed

        check_task(task)
        check_seed(seed)
        _check_rendering()


def demo(
    *, plan: Mapping[str, Any], backbone: str, episodes: int, workers: int, noise: float, seed: int, **options: Any
) -> None:
    """Checks the options of all phases, and that this machine can render."""
    from vla.commands.operation_checks import check_demonstrations
    from vla.training.train_config import make_train_config

    check_demonstrations(episodes, workers, noise, seed)
    for name in ("scenes", "evaluations", "parallel", "n_action_steps", "horizon", "turns"):
        if options[name] < 1:
            raise InputError(f"{name} must be at least 1, not {options[name]}")
    make_train_config(plan)
    check_backbone(backbone)
    _check_rendering()


def check_task(name: str, *more: str) -> None:
    """Raises InputError unless the task is a built-in task, one of `more`, a task of a suite, or a file."""
    from vla.envs.make import is_task
    from vla.envs.suites.config import is_suite, read_suite, suites, tasks_of

    known = [*tasks(), *more]
    if name in more:
        return
    if not is_task(name):
        raise unknown("task", name, [*known, *(f"{suite}/TASK" for suite in suites()), "FILE.yaml"])
    if tasks_of(name) == (name,) and is_suite(name):
        read_suite(name)


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
    from vla.commands.operation_checks import check_serial_port

    for name, options in (("robot", robot), ("robot.options", robot.get("options") or {})):
        if (port := options.get("port")) is not None:
            check_serial_port(f"{name}.port", port)


def _check_instruction(instruction: str | None, robot: Mapping[str, Any]) -> None:
    """Raises InputError if a real robot has no instruction; a simulated one, or a plug-in, may have its own."""
    from vla.commands.operation_checks import NO_INSTRUCTION

    target = str(current_targets(robot).get("_target_", ""))
    if not instruction and target.startswith("vla.robots.lerobot_adapter."):
        raise InputError(NO_INSTRUCTION)


def _check_rendering() -> None:
    from vla.common.rendering import check_rendering

    check_rendering()

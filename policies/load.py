"""Loads policies by name: scripted, from a local or hub checkpoint, of LeRobot, or on a server."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.embodiment import Embodiment
from vla.errors import InputError, suggestion
from vla.models.hub import HUB_NAME, checkpoint_of, fetch, tasks_of, weights_digest
from vla.models.released.registry import is_policy, open_policy
from vla.policies.policy import Policy

if TYPE_CHECKING:
    import gymnasium

    from vla.policies.vla import VlaPolicy

SCRIPTED = ("expert", "hold")
HUB, LEROBOT = "hub:", "lerobot:"
REMOTE = ("ws://", "wss://")
WEIGHTS_FOLDERS = ("best", "pretrained_model", "checkpoints/last/pretrained_model", "")
"""Paths of the weights in the folder of a run or a checkpoint, of vla or LeRobot."""
SIMULATION_TIMEOUT = 60.0
"""Timeout of a server's answer in simulation [s], which is paused during inference."""


def load_policy(name: str) -> Callable[[gymnasium.Env[Any, Any]], Policy]:
    """A function that returns the policy for an environment. A checkpoint is loaded once and shared.

    Args:
        name: A scripted policy, or the folder of a checkpoint or of a released policy of another project
            (`vla.models.released.registry`). `hub:NAME` loads a checkpoint from the hub, `lerobot:NAME` a
            policy of LeRobot from a folder or the hub, and `ws://HOST:PORT` uses a server (`vla serve`).

    Raises:
        InputError: if there is no such policy.
    """
    if name == "expert":
        from vla.policies.scripted_expert import ScriptedExpertPolicy

        return ScriptedExpertPolicy
    if name == "hold":
        from vla.policies.hold import HoldPolicy

        return lambda env: HoldPolicy(env.unwrapped.embodiment)  # type: ignore[attr-defined]
    if name.startswith(LEROBOT):
        from vla.policies.lerobot_policy import load_lerobot

        return load_lerobot(name.removeprefix(LEROBOT))
    if name.startswith(REMOTE):
        from vla.policies.remote import RemotePolicy

        return lambda env: RemotePolicy(name, timeout=SIMULATION_TIMEOUT)
    from vla.common.device import accelerator
    from vla.models.vla import VLA
    from vla.policies.vla import VlaPolicy

    folder = checkpoint(name)
    if is_policy(folder):
        released = open_policy(folder)
        drive = cache(lambda body: VlaPolicy(released.model([released.robot(body)]).to(accelerator()), body))
        return lambda env: drive(env.unwrapped.embodiment)  # type: ignore[attr-defined]
    model = VLA.load(folder).to(accelerator())
    serve = cache(partial(VlaPolicy, model))
    return lambda env: serve(env.unwrapped.embodiment)  # type: ignore[attr-defined]


def check_policy(name: str) -> None:
    """Checks the name of a policy, without loading it or accessing a hub.

    Raises:
        InputError: for a name that is no policy.
    """
    if name in SCRIPTED or name.startswith(REMOTE):
        return
    if name.startswith((HUB, LEROBOT)):
        source = name.removeprefix(HUB).removeprefix(LEROBOT)
        if not Path(source).is_dir() and not re.fullmatch(HUB_NAME, source):
            raise InputError(f"{source} is neither a folder nor a model of the hub, which is written user/model")
        return
    if not is_policy(folder := checkpoint(name)):
        checkpoint_of(folder)


def tasks_trained_on(name: str) -> tuple[str, ...]:
    """The simulated tasks that the policy was trained on, from its checkpoint or server; pick for a scripted one.

    Raises:
        InputError: if they are unknown.
    """
    if name in SCRIPTED:
        return ("pick",)
    if tasks := tasks_of_policy(name):
        return tasks
    raise InputError(f"{name} does not name the simulated task it was trained on: name one, such as task=pick")


def tasks_of_policy(name: str) -> tuple[str, ...]:
    """The simulated tasks that the policy was trained on; empty if unknown."""
    if name.startswith(REMOTE):
        from vla.policies.remote import server_metadata

        return tuple(server_metadata(name).get("tasks", ()))
    folder = None if name in SCRIPTED else _weights_folder(name)
    return () if folder is None else tasks_of(folder)


def weights_of_policy(name: str) -> str | None:
    """The digest of a policy's weights (`vla.models.hub.weights_digest`), which does not depend on their folder.

    None for a policy without weights.
    """
    if name.startswith(REMOTE):
        from vla.policies.remote import server_metadata

        return server_metadata(name).get("weights")
    folder = None if name in SCRIPTED else _weights_folder(name)
    return None if folder is None else weights_digest(folder)


def _weights_folder(name: str) -> Path | None:
    source = name.removeprefix(HUB).removeprefix(LEROBOT)
    folder = Path(name) if source == name else fetch(source)
    return next((folder / path for path in WEIGHTS_FOLDERS if (folder / path / "model.safetensors").is_file()), None)


def policy_for(name: str, body: Embodiment) -> Policy:
    """Loads a policy for a robot, a checkpoint by `load_realtime`.

    Its embodiment is not checked here; see `vla.control.adapt`.

    Raises:
        InputError: for the scripted expert, which needs a simulation.
    """
    check_deployable(name)
    if name == "hold" or name.startswith((LEROBOT, *REMOTE)):
        return load_policy(name)(_Robot(body))  # type: ignore[arg-type]
    return load_realtime(name, body)


def load_realtime(name: str, embodiment: str | Embodiment = "") -> VlaPolicy:
    """Loads a checkpoint for single requests: decoded by the inference engine, in bf16 on a GPU."""
    folder = checkpoint(name)
    from vla.common.device import accelerator
    from vla.policies.vla import VlaPolicy

    precision = "bfloat16" if accelerator().type == "cuda" else "float32"
    if not is_policy(folder):
        return VlaPolicy.load(folder, embodiment, precision)
    if isinstance(embodiment, str):
        raise InputError(f"{name} is a released policy, which does not name its robot: deploy it on one")
    released = open_policy(folder)
    return VlaPolicy(released.model([released.robot(embodiment)]).to(accelerator()), embodiment, precision)


def check_deployable(name: str) -> None:
    """Raises InputError for the scripted expert, which needs a simulation."""
    if name == "expert":
        raise InputError("the expert only works in simulation: deploy a checkpoint")


@dataclass(frozen=True)
class _Robot:
    """A substitute for an environment that has an embodiment alone."""

    embodiment: Embodiment

    @property
    def unwrapped(self) -> _Robot:
        return self


def checkpoint(name: str) -> Path:
    """The folder of a checkpoint: the best one of a training run, or the download of `hub:user/model`.

    Raises:
        InputError: if there is none.
    """
    source, options = name.partition("?")[0], name.partition("?")[1:]  # a released policy may have options
    folder = fetch(source.removeprefix(HUB)) if source.startswith(HUB) else Path(source)
    if not folder.is_dir():
        forms = ", ".join((f"{HUB}user/model", f"{LEROBOT}FOLDER", "ws://HOST:PORT", *SCRIPTED))
        siblings = [f"{folder.parent / one.name}" for one in folder.parent.iterdir()] if folder.parent.is_dir() else []
        similar = suggestion(name, [*SCRIPTED, *siblings])
        raise InputError(f"no policy {name!r}{similar}; give a checkpoint's folder, or one of {forms}")
    folder = folder / "best" if (folder / "best").exists() else folder
    return Path(str(folder) + "".join(options))

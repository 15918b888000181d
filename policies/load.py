"""Policies by name: a scripted one, a checkpoint here or on the hub, or one of LeRobot's."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium

from vla.embodiment import Embodiment
from vla.errors import InputError, suggestion
from vla.models.hub import HUB_NAME, checkpoint_of, fetch, tasks_of, weights_digest
from vla.policies.policy import Policy

if TYPE_CHECKING:
    from vla.policies.vla import VlaPolicy

SCRIPTED = ("expert", "hold")
HUB, LEROBOT = "hub:", "lerobot:"
REMOTE = ("ws://", "wss://")
PLACES = ("best", "pretrained_model", "checkpoints/last/pretrained_model", "")
"""Where the weights are in the folder of a run or a checkpoint, of ours or LeRobot's."""
PATIENCE = 60.0
"""[s] that a simulation, which stands still meanwhile, waits for a server's answer."""


def load_policy(name: str) -> Callable[[gymnasium.Env[Any, Any]], Policy]:
    """What gives each environment its policy; a checkpoint is loaded once and shared by all.

    `hub:` before a name loads it from the hub, `lerobot:` a policy of LeRobot from a folder or the hub; `ws://HOST:PORT`
    asks a server (`vla serve`). Raises InputError when `name` is neither scripted nor a checkpoint.
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

        return lambda env: RemotePolicy(name, timeout=PATIENCE)
    from vla.common.device import accelerator
    from vla.models.vla import VLA
    from vla.policies.vla import VlaPolicy

    model = VLA.load(checkpoint(name)).to(accelerator())
    serve = cache(partial(VlaPolicy, model))
    return lambda env: serve(env.unwrapped.embodiment)  # type: ignore[attr-defined]


def check_policy(name: str) -> None:
    """Raises InputError for a name that is no policy's, as far as that shows without loading one or asking a hub."""
    if name in SCRIPTED or name.startswith((HUB, *REMOTE)):
        return
    if name.startswith(LEROBOT):
        if not Path(rest := name.removeprefix(LEROBOT)).is_dir() and not re.fullmatch(HUB_NAME, rest):
            raise InputError(f"{rest} is neither a folder nor a model of the hub, which is written user/model")
        return
    checkpoint_of(checkpoint(name))


def tasks_trained_on(name: str) -> tuple[str, ...]:
    """The simulated tasks that the policy `name` was trained on, as its checkpoint or its server says; pick for a
    scripted one. Raises InputError where it is not known."""
    if name in SCRIPTED:
        return ("pick",)
    if found := tasks_of_policy(name):
        return found
    raise InputError(f"{name} does not say what simulated task it was trained on: name one, such as task=pick")


def tasks_of_policy(name: str) -> tuple[str, ...]:
    """The simulated tasks that the policy `name` was trained on; none where it does not say."""
    if name.startswith(REMOTE):
        from vla.policies.remote import server_metadata

        return tuple(server_metadata(name).get("tasks", ()))
    folder = None if name in SCRIPTED else _weights_folder(name)
    return () if folder is None else tasks_of(folder)


def weights_of_policy(name: str) -> str | None:
    """The digest of a policy's weights (`vla.models.hub.weights_digest`), wherever its folder lies or of its server;
    None of a scripted one."""
    if name.startswith(REMOTE):
        from vla.policies.remote import server_metadata

        return server_metadata(name).get("weights")
    folder = None if name in SCRIPTED else _weights_folder(name)
    return None if folder is None else weights_digest(folder)


def _weights_folder(name: str) -> Path | None:
    rest = name.removeprefix(HUB).removeprefix(LEROBOT)
    folder = Path(name) if rest == name else fetch(rest)
    return next((folder / place for place in PLACES if (folder / place / "model.safetensors").is_file()), None)


def policy_for(name: str, body: Embodiment) -> Policy:
    """The policy `name` for a robot, a checkpoint's by `load_realtime`.

    Whether it is of this robot's embodiment is to be checked (`vla.control.adapt`). Raises InputError for the expert,
    which only knows simulations.
    """
    if name == "expert":
        raise InputError("the expert knows simulated scenes only: deploy a checkpoint")
    if name == "hold" or name.startswith((LEROBOT, *REMOTE)):
        return load_policy(name)(_Robot(body))  # type: ignore[arg-type]
    return load_realtime(name, body)


def load_realtime(name: str, embodiment: str | Embodiment = "") -> VlaPolicy:
    """A checkpoint's policy that is asked for one chunk at a time: decoded by its engine, in bf16 on a GPU."""
    folder = checkpoint(name)
    from vla.common.device import accelerator
    from vla.policies.vla import VlaPolicy

    return VlaPolicy.load(folder, embodiment, "bfloat16" if accelerator().type == "cuda" else "float32")


@dataclass(frozen=True)
class _Robot:
    """As much of an environment as a policy is made for."""

    embodiment: Embodiment

    @property
    def unwrapped(self) -> _Robot:
        return self


def checkpoint(name: str) -> Path:
    """The folder of a checkpoint's files: of a training run the best, of `hub:user/model` the download.

    Raises InputError where there is none.
    """
    folder = fetch(name.removeprefix(HUB)) if name.startswith(HUB) else Path(name)
    if not folder.is_dir():
        known = ", ".join((f"{HUB}user/model", f"{LEROBOT}FOLDER", "ws://HOST:PORT", *SCRIPTED))
        beside = [f"{folder.parent / one.name}" for one in folder.parent.iterdir()] if folder.parent.is_dir() else []
        near = suggestion(name, [*SCRIPTED, *beside])
        raise InputError(f"no policy {name!r}{near}; give a checkpoint's folder, or one of {known}")
    return folder / "best" if (folder / "best").exists() else folder

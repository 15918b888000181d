"""Policies by name: a scripted one, a checkpoint here or on the hub, or one of LeRobot's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import gymnasium

from vla.errors import InputError
from vla.hub import fetch
from vla.policies.protocol import Policy

SCRIPTED = ("expert", "hold")
HUB, LEROBOT = "hub:", "lerobot:"


def load_policy(name: str) -> Callable[[gymnasium.Env[Any, Any]], Policy]:
    """What gives each environment its policy; a checkpoint is loaded once and shared by all.

    `hub:` before a name loads it from the hub, `lerobot:` a policy of LeRobot from a folder or the hub. Raises
    InputError when `name` is neither scripted nor a checkpoint.
    """
    if name == "expert":
        from vla.policies.expert import ExpertPolicy

        return ExpertPolicy
    if name == "hold":
        from vla.policies.hold import HoldPolicy

        return lambda env: HoldPolicy(env.unwrapped.embodiment)  # type: ignore[attr-defined]
    if name.startswith(LEROBOT):
        from vla.policies.lerobot_policy import load_lerobot

        return load_lerobot(name.removeprefix(LEROBOT))
    folder = fetch(name.removeprefix(HUB)) if name.startswith(HUB) else Path(name)
    if not folder.is_dir():
        known = ", ".join((f"{HUB}user/model", f"{LEROBOT}FOLDER", *SCRIPTED))
        raise InputError(f"no policy {name!r}: give a checkpoint's folder, or one of {known}")
    from vla.model import VLA
    from vla.policies.vla import VlaPolicy

    model = VLA.load(folder / "best" if (folder / "best").exists() else folder)
    serve = cache(partial(VlaPolicy, model))
    if len(model.processor.robots) < 2:
        policy = serve()
        return lambda env: policy
    return lambda env: serve(env.unwrapped.embodiment.name)  # type: ignore[attr-defined]

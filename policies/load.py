"""Policies by name: a scripted one, or the folder of a checkpoint or of a training run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import gymnasium

from vla.errors import InputError
from vla.policies.protocol import Policy

SCRIPTED = ("expert", "hold")


def load_policy(name: str) -> Callable[[gymnasium.Env[Any, Any]], Policy]:
    """What gives each environment its policy; a checkpoint is loaded once and shared by all.

    Raises InputError when `name` is neither scripted nor a checkpoint.
    """
    if name == "expert":
        from vla.policies.expert import ExpertPolicy

        return ExpertPolicy
    if name == "hold":
        from vla.policies.hold import HoldPolicy

        return lambda env: HoldPolicy(env.unwrapped.embodiment)  # type: ignore[attr-defined]
    folder = Path(name)
    if not folder.is_dir():
        raise InputError(f"no policy {name!r}: give a checkpoint's folder, or one of {', '.join(SCRIPTED)}")
    from vla.model import VLA
    from vla.policies.vla import VlaPolicy

    model = VLA.load(folder / "best" if (folder / "best").exists() else folder)
    serve = cache(partial(VlaPolicy, model))
    if len(model.processor.robots) < 2:
        policy = serve()
        return lambda env: policy
    return lambda env: serve(env.unwrapped.embodiment.name)  # type: ignore[attr-defined]

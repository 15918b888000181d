"""The options of `vla train` with which a released robot policy was trained, as defaults."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vla.models.released.registry import policy_defaults
from vla.training.run_options import RunOptions


def with_policy_options(options: RunOptions) -> RunOptions:
    """The options, with those of the released policy in `backbone` where they are not set. Prints them.

    Raises:
        InputError: for a policy that training does not support.
    """
    if (policy := policy_defaults(options.backbone)) is None:
        return options
    head = {"kind": options.head} if isinstance(options.head, str) else dict(options.head or {})
    if (head.get("kind") or policy.head) != policy.head:
        return options
    defaults = {"horizon": policy.horizon, "predict": policy.predict, "normalization": policy.normalization}
    values: dict[str, Any] = {
        name: default if getattr(options, name) is None else getattr(options, name)
        for name, default in defaults.items()
    }
    text = ", ".join(f"{name}={value}" for name, value in ({"head": policy.head} | values).items())
    print(f"{options.backbone} is {policy.kind}: {text}", flush=True)
    return replace(options, head=head | {"kind": policy.head}, **values)

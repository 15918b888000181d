"""The options of `vla train` with which a released robot policy was trained, as defaults."""

from __future__ import annotations

from dataclasses import replace

from vla.models.released.registry import policy_defaults
from vla.training.run_options import RunOptions


def with_policy_options(options: RunOptions) -> RunOptions:
    """The options, with those of the released policy in `backbone` where they are not set. Prints them.

    Raises:
        InputError: for a policy that training does not support.
    """
    if (policy := policy_defaults(options.backbone)) is None:
        return options
    kind = options.head if isinstance(options.head, str) else options.head.get("kind")
    if kind != policy.head:
        return options
    values = {"horizon": policy.horizon, "predict": policy.predict, "normalization": policy.normalization}
    defaults = {name: value for name, value in values.items() if getattr(options, name) is None}
    text = ", ".join(f"{name}={value}" for name, value in ({"head": policy.head} | values | _set(options)).items())
    print(f"{options.backbone} is {policy.kind}: {text}", flush=True)
    return replace(options, **defaults)  # type: ignore[arg-type]


def _set(options: RunOptions) -> dict[str, object]:
    names = ("horizon", "predict", "normalization")
    return {name: value for name in names if (value := getattr(options, name)) is not None}

"""`vla export-lerobot`: writes a fine-tuned released policy for LeRobot's commands."""

from __future__ import annotations

from pathlib import Path

from vla.models.hub import checkpoint_of
from vla.models.released.lerobot_export import export_lerobot as export
from vla.models.vla import VLA


def export_lerobot(*, policy: str, out: str) -> None:
    """Writes the checkpoint `policy` into the new folder `out`.

    Raises:
        InputError: `policy` is not a checkpoint that LeRobot can represent, or `out` is not empty.
    """
    export(VLA.load(checkpoint_of(Path(policy))), Path(out))
    print(f"{out}: a policy of LeRobot; `lerobot-eval --policy.path={out}` and `lerobot-rollout` load it")

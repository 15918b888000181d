"""OpenVLA-OFT (Kim et al. 2025, arXiv 2502.19645): the action head and the projector of the state.

Both are in files of their own beside the weights of OpenVLA. The attention of the language model has no causal mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vla.errors import InputError
from vla.models.backbones.own_family import Rule, converted
from vla.models.released.openvla_files import read_module

PARTS = "(weight|bias)"
RULES = (
    Rule(rf"model\.layer_norm1\.{PARTS}", (r"continuous_head.action_in_proj.0.\1",)),
    Rule(rf"model\.fc1\.{PARTS}", (r"continuous_head.action_in_proj.1.\1",)),
    Rule(rf"model\.mlp_resnet_blocks\.(\d+)\.ffn\.([01])\.{PARTS}", (r"continuous_head.blocks.\1.\2.\3",)),
    Rule(rf"model\.layer_norm2\.{PARTS}", (r"continuous_head.action_out_proj.0.\1",)),
    Rule(rf"model\.fc2\.{PARTS}", (r"continuous_head.action_out_proj.1.\1",)),
)
STATE_RULES = (
    Rule(rf"fc1\.{PARTS}", (r"state_proj.0.\1",)),
    Rule(rf"fc2\.{PARTS}", (r"state_proj.2.\1",)),
)
HORIZONS = {(7, 8): 8, (14, 14): 25, (7, 7): 5}
"""Steps of a chunk by the number of components of actions and states: in LIBERO, of ALOHA, and in Bridge."""
ALOHA = 14
"""Components of the actions of ALOHA, whose statistics are used from the smallest to the largest value."""
UNSUPPORTED = {
    "vision_backbone": "language conditioning of the vision encoders (FiLM)",
    "noisy_action_projector": "a diffusion head",
}


@dataclass(frozen=True)
class OftHead:
    """The modules of OpenVLA-OFT.

    Attributes:
        weights: with our names.
        action_dim, state_dim: number of components; no state token for 0.
        horizon: number of steps of a chunk.
    """

    weights: Mapping[str, Tensor]
    action_dim: int
    state_dim: int
    horizon: int

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the action head."""
        return {"kind": "l1", "in_prompt": True}

    @property
    def ends(self) -> tuple[str, str]:
        """The statistics that are mapped to -1 and 1."""
        return ("min", "max") if self.action_dim == ALOHA else ("q01", "q99")


def read_head(folder: Path, horizon: int | None) -> OftHead | None:
    """The modules in a folder; None for OpenVLA without them.

    Args:
        horizon: number of steps of a chunk, which no weight shows; None: that of the robot with as many components.

    Raises:
        InputError: for modules that are not supported, or an unknown horizon.
    """
    for name, feature in UNSUPPORTED.items():
        if any(folder.glob(f"{name}--*_checkpoint.pt")):
            raise InputError(f"{folder} is an OpenVLA-OFT with {feature}, which is not supported")
    head, state = read_module(folder, "action_head"), read_module(folder, "proprio_projector")
    if not head:
        return None
    weights = converted(head, RULES) | converted(state, STATE_RULES)
    try:
        action_dim = len(weights["continuous_head.action_out_proj.1.weight"])
        state_dim = weights["state_proj.0.weight"].shape[1] if state else 0
    except KeyError as error:
        raise InputError(f"the modules of {folder} are not OpenVLA-OFT's: they lack {error}") from error
    horizon = horizon or HORIZONS.get((action_dim, state_dim))
    if horizon is None:
        raise InputError(
            f"{folder} has {action_dim} components of actions and {state_dim} of states: give the number of steps of "
            "its chunks (horizon=8 in LIBERO, 25 for ALOHA, 5 in Bridge)"
        )
    return OftHead(weights, action_dim, state_dim, horizon)

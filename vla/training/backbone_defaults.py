"""Default optimizer, learning rates and frozen parts of each backbone, where the plan has none."""

from __future__ import annotations

from typing import Any

from vla.models.backbones import catalog
from vla.models.backbones.backbone import Backbone
from vla.models.backbones.nano import VISION

MUON: dict[str, Any] = {"optimizer": "muon", "lr": 1e-3, "weight_decay": 0.05}


def backbone_defaults(backbone: Backbone, *, scratch: bool = False) -> dict[str, Any]:
    """Returns the values of `plan` that replace null for this backbone.

    - nano: the first vision layers (half of a step's time) are frozen, the rest has half the head's learning rate.
    - random weights (`scratch`): nothing is frozen, one learning rate.
    - other pretrained backbones: as stage=cotrain (OpenVLA, Kim et al. 2024, sec. 3.4). The connector of a composed
      backbone has the head's learning rate, because it may be new.
    """
    parts = backbone.freezable_modules()
    if scratch:
        return MUON | {"freeze": (), "lr_multipliers": {}}
    if backbone.config.get("vision") == VISION:
        return MUON | {"freeze": catalog.family("nano").freezes, "lr_multipliers": dict.fromkeys(parts, 0.5)}
    multipliers = dict.fromkeys(parts, 0.2)
    if backbone.config.get("family", "composed") == "composed":
        multipliers["connector"] = 1.0
    return {"optimizer": "adamw", "lr": 1e-4, "weight_decay": 0.0, "freeze": (), "lr_multipliers": multipliers}

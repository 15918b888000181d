"""How a backbone trains where the plan does not say: optimizer, rates, and what stays as it is."""

from __future__ import annotations

from typing import Any

from vla.models.backbones import catalog
from vla.models.backbones.backbone import Backbone
from vla.models.backbones.nano import VISION

MUON: dict[str, Any] = {"optimizer": "muon", "lr": 1e-3, "weight_decay": 0.05}


def backbone_defaults(backbone: Backbone, *, scratch: bool = False) -> dict[str, Any]:
    """The values of `plan` that a backbone has where they are null.

    nano: its edges and colours (half of a step's time) stay, and the rest has half the head's rate. With random weights
    (`scratch`): nothing stays, all at one rate. Any other pretrained one: as stage=cotrain (OpenVLA, Kim et al. 2024,
    sec. 3.4), but for the connector of a composed one, which has the head's rate, since it may be new.
    """
    parts = backbone.freezable_modules()
    if scratch:
        return MUON | {"freeze": (), "lr_multipliers": {}}
    if backbone.config.get("vision") == VISION:
        return MUON | {"freeze": catalog.family("nano").freezes, "lr_multipliers": dict.fromkeys(parts, 0.5)}
    scales = dict.fromkeys(parts, 0.2)
    if backbone.config.get("family", "composed") == "composed":
        scales["connector"] = 1.0
    return {"optimizer": "adamw", "lr": 1e-4, "weight_decay": 0.0, "freeze": (), "lr_multipliers": scales}

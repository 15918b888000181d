"""The probes by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from vla.evaluation.vlm.answerer import Answerer, BackboneAnswerer
from vla.evaluation.vlm.probes.captions import CHAIR_SIM
from vla.evaluation.vlm.probes.counting import COUNTING
from vla.evaluation.vlm.probes.detail import DETAIL
from vla.evaluation.vlm.probes.existence import POPE_SIM
from vla.evaluation.vlm.probes.modality import modality_gap
from vla.evaluation.vlm.probes.names import GAP
from vla.evaluation.vlm.probes.probe import ProbeResult
from vla.evaluation.vlm.probes.spatial import SPATIAL


@runtime_checkable
class Run(Protocol):
    """A function that runs a probe."""

    def __call__(self, answerer: Answerer, n: int, seed: int, baseline: bool = True) -> ProbeResult:
        """Runs the probe on n scenes of a seed; `baseline` adds the scores with blank images."""
        ...


PROBES: Mapping[str, Run] = {
    "pope-sim": POPE_SIM,
    "chair-sim": CHAIR_SIM,
    "counting": COUNTING,
    "spatial": SPATIAL,
    "detail": DETAIL,
    GAP: modality_gap,
}
"""The probes by name; `vla.evaluation.vlm.probes.names` lists the names for checks."""
LOWER = ("chair-sim", GAP)
"""Probes whose main score is better if lower."""


def select_probes(names: Sequence[str] | None, answerer: Answerer) -> dict[str, Run]:
    """The named probes, or all that this model supports."""
    supported = [name for name in PROBES if name != GAP or isinstance(answerer, BackboneAnswerer)]
    return {name: PROBES[name] for name in (supported if names is None else names)}

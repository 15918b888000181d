"""LeRobot's pre- and post-processing: names, a batch of one. The model itself normalizes, and moves to its device."""

from __future__ import annotations

from typing import Any

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    NormalizerProcessorStep,
    RenameObservationsProcessorStep,
    UnnormalizerProcessorStep,
)
from lerobot.processor.factory import make_policy_processor_pipelines

from lerobot_policy_vla.configuration_vla import VlaConfig


def make_vla_pre_post_processors(config: VlaConfig, dataset_stats: Any = None) -> tuple[Any, Any]:
    """The pipelines stored in `vla.models.hub.LEROBOT_FILES`; `dataset_stats` and the normalizers are not used."""
    return make_policy_processor_pipelines(
        input_steps=[
            RenameObservationsProcessorStep(rename_map={}),
            AddBatchDimensionProcessorStep(),
            DeviceProcessorStep(device="cpu"),
            NormalizerProcessorStep(features={}, norm_map={}),
        ],
        output_steps=[UnnormalizerProcessorStep(features={}, norm_map={}), DeviceProcessorStep(device="cpu")],
    )

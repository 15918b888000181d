"""LeRobot's pre- and post-processing: names, a batch of one, devices. The model itself normalizes."""

from __future__ import annotations

from typing import Any

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    RenameObservationsProcessorStep,
)
from lerobot.processor.factory import make_policy_processor_pipelines

from lerobot_policy_vla.configuration_vla import VlaConfig


def make_vla_pre_post_processors(config: VlaConfig, dataset_stats: Any = None) -> tuple[Any, Any]:
    """The pipelines stored in `vla.models.hub.LEROBOT_FILES`; `dataset_stats` are not used."""
    return make_policy_processor_pipelines(
        input_steps=[
            RenameObservationsProcessorStep(rename_map={}),
            AddBatchDimensionProcessorStep(),
            DeviceProcessorStep(device=config.device or "cpu"),
        ],
        output_steps=[DeviceProcessorStep(device="cpu")],
    )

"""LeRobot's training script as a contestant of `vla bench train`, with policies of any size, without network access.

SmolVLA reads its sizes from a configuration folder. pi0-FAST has two hard-coded sizes and tokenizers on a hub, one with
remote code. `SizedPI0FastPolicy`, registered with LeRobot like a plug-in, builds LeRobot's classes from a configuration
folder, with our FAST tokenizer.
"""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.policies.pi0_fast.configuration_pi0_fast import PI0FastConfig
from lerobot.policies.pi0_fast.modeling_pi0_fast import PI0FastPolicy, PI0FastPytorch
from lerobot.policies.pi0_fast.processor_pi0_fast import Pi0FastPrepareStateAndLanguageTokenizerProcessorStep
from lerobot.policies.pi_gemma import PaliGemmaForConditionalGenerationWithPiGemma
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import (
    ActionTokenizerProcessorStep,
    TokenizerProcessorStep,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)
from lerobot.scripts.lerobot_train import train
from lerobot.utils.logging_utils import MetricsTracker
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoTokenizer

from vla.benchmarks.loader_formats import video_backend
from vla.benchmarks.train_contestant import Turns
from vla.benchmarks.train_shapes import Shape
from vla.common.device import accelerator
from vla.models.action_tokenizers.fast import FastTokenizer


def loop(
    turns: Turns, shape: Shape, dataset: Path, batch_size: int, bf16: bool, sizes: Path, workers: int, folder: Path
) -> None:
    """Trains all weights endlessly, with LeRobot's other defaults and its measurement of data waiting time."""
    more = {"num_workers": workers, "prefetch_factor": None, "dataloader_multiprocessing_context": None}
    config = TrainPipelineConfig(
        dataset=DatasetConfig("vla/bench", root=str(dataset), video_backend=video_backend()),
        policy=_policy(shape, sizes, bf16),
        output_dir=folder,
        batch_size=batch_size,
        steps=10**6,
        log_freq=turns.steps,
        save_checkpoint=False,
        **(more if workers == 0 else {"num_workers": workers}),
    )
    counting = ExitStack()
    counter = counting.enter_context(FlopCounterMode(display=False))
    counting.enter_context(sdpa_kernel(SDPBackend.MATH))

    def at_record(record: logging.LogRecord) -> bool:
        if isinstance(record.msg, MetricsTracker):
            counting.close()
            # The counter covers only the first turn.
            flops = counter.get_total_flops() / turns.steps / batch_size
            turns.end(waited=turns.steps * record.msg.dataloading_s.avg, flops=flops)
        return True

    logging.getLogger().addFilter(at_record)
    train(config)


def _policy(shape: Shape, sizes: Path, bf16: bool) -> PreTrainedConfig:
    if shape.policy == "smolvla":
        config = PreTrainedConfig.from_pretrained(sizes / "policy")
        config.pretrained_path, config.use_amp = sizes / "policy", bf16
        return config
    return SizedPI0FastConfig(
        device=accelerator().type,
        push_to_hub=False,
        chunk_size=shape.chunk,
        n_action_steps=shape.chunk,
        sizes=str(sizes),
        text_tokenizer_name=str(sizes),
        image_resolution=(shape.image_size, shape.image_size),
        dtype="bfloat16" if bf16 else "float32",
        tokenizer_max_length=32,
        max_action_tokens=json.loads((sizes / "lengths.json").read_text())["actions"],
        fast_skip_tokens=0,
    )


@PreTrainedConfig.register_subclass("sized_pi0_fast")
@dataclass
class SizedPI0FastConfig(PI0FastConfig):
    sizes: str = ""


class SizedPI0FastPolicy(PI0FastPolicy):
    """LeRobot's policy and model with the PaliGemma configuration in the folder `sizes`."""

    config_class = SizedPI0FastConfig
    name = "sized_pi0_fast"

    def __init__(self, config: SizedPI0FastConfig, **_: Any) -> None:
        PreTrainedPolicy.__init__(self, config)
        config.validate_features()
        self.config = config
        self.init_rtc_processor()
        with torch.device("meta"):  # the backbone of LeRobot's size is replaced
            self.model = PI0FastPytorch(config, rtc_processor=self.rtc_processor)
        body = self.model.paligemma_with_expert
        body.paligemma = PaliGemmaForConditionalGenerationWithPiGemma(AutoConfig.from_pretrained(config.sizes))
        body.to_bfloat16_for_selected_params(config.dtype)
        self.model.to(config.device)
        self.reset()


def make_sized_pi0_fast_pre_post_processors(config: SizedPI0FastConfig, dataset_stats: Any = None) -> Any:
    """LeRobot's steps for pi0-FAST, in its order, with the tokenizers of the folder `sizes`."""
    steps = make_default_policy_processor_steps(config, dataset_stats)
    tokenizer = AutoTokenizer.from_pretrained(config.sizes)
    fast = FastTokenizer.load(Path(config.sizes))
    inputs = [
        steps.rename_observations,
        steps.add_batch_dim,
        steps.normalize,
        Pi0FastPrepareStateAndLanguageTokenizerProcessorStep(max_state_dim=config.max_state_dim),
        TokenizerProcessorStep(
            tokenizer=tokenizer, max_length=config.tokenizer_max_length, padding_side="right", padding="max_length"
        ),
        ActionTokenizerProcessorStep(
            action_tokenizer_input_object=lambda chunk: [fast.encode(chunk[0].numpy()).tolist()],
            trust_remote_code=False,
            max_action_tokens=config.max_action_tokens,
            fast_skip_tokens=config.fast_skip_tokens,
            paligemma_tokenizer_name=config.text_tokenizer_name,
        ),
        steps.to_device,
    ]
    return make_policy_processor_pipelines(input_steps=inputs, output_steps=[steps.unnormalize, steps.to_cpu])

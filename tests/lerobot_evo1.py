"""A small EVO1 of LeRobot, with an InternVL3 in the layout of the published one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot_policies import LeRobotReference, reference, statistics
from released_checkpoints import byte_level, save_random_model
from tiny_families import MODELS
from transformers import PreTrainedTokenizerFast

from vla.types import Observation

PADDED, VIEWS, SIDE, LAYERS = 9, 4, 28, 3
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rope_theta": 1e6,
}
SETTINGS: dict[str, Any] = {
    "max_state_dim": PADDED,
    "max_action_dim": PADDED,
    "max_views": VIEWS,
    "image_resolution": (SIDE, SIDE),
    "empty_cameras": 1,
    "vlm_num_layers": LAYERS,
    "vlm_dtype": "float32",
    "use_amp": False,
    "use_flash_attn": False,
    "enable_gradient_checkpointing": False,
    "training_stage": "stage2",
    "embed_dim": 48,
    "hidden_dim": 40,
    "state_hidden_dim": 36,
    "num_heads": 4,
    "num_layers": 2,
    "num_inference_timesteps": 7,
}


@dataclass
class Evo1Reference(LeRobotReference):
    """LeRobot's EVO1 with fixed draws."""

    def batch(self, observation: Observation, actions: np.ndarray[Any, Any] | None = None) -> dict[str, Any]:
        """See `LeRobotReference.batch`; cameras may be missing, beside the empty ones."""
        self.policy.config.empty_cameras = VIEWS
        batch = super().batch(observation, actions)
        if isinstance(batch["task"], str):
            batch["task"] = [batch["task"]]
        return batch

    def reloaded(self, folder: Path) -> Evo1Reference:
        """See `LeRobotReference.reloaded`."""
        return Evo1Reference(**vars(super().reloaded(folder)))

    def chunk(self, observation: Observation, noise: torch.Tensor) -> np.ndarray[Any, Any]:
        """See `LeRobotReference.chunk`; the noise is uniform on [-1, 1]."""
        with torch.no_grad(), fixed_draws(noise[None], torch.zeros(1)):
            chunk = self.after(self.policy.predict_action_chunk(self.batch(observation)))
        return np.asarray(chunk[0].double())


def evo1_reference(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Evo1Reference:
    """Makes a policy and saves it."""
    return Evo1Reference(**vars(reference(_evo1, folder, monkeypatch, **options)))


def internvl_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and InternVL's special tokens."""
    return byte_level("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")


def _evo1(folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    from lerobot.policies.evo1.configuration_evo1 import Evo1Config
    from lerobot.policies.evo1.modeling_evo1 import Evo1Policy
    from lerobot.policies.evo1.processor_evo1 import make_evo1_pre_post_processors

    vlm, words = folder / "vlm", internvl_tokenizer()
    words.save_pretrained(vlm)
    config = {**MODELS["internvl-3"], "image_seq_length": 4}
    config["text_config"] = {**config["text_config"], **TEXT, "vocab_size": len(words) + 5}
    config["image_token_id"] = words.convert_tokens_to_ids("<IMG_CONTEXT>")
    save_random_model(config, vlm)
    made: Any = Evo1Config
    settings = made(**{**SETTINGS, "vlm_model_name": str(vlm)} | options)
    ranges = {key: values | {"min": values["q01"], "max": values["q99"]} for key, values in statistics().items()}
    return Evo1Policy(settings), *make_evo1_pre_post_processors(settings, ranges)


@contextmanager
def fixed_draws(noise: torch.Tensor, time: torch.Tensor) -> Iterator[None]:
    """LeRobot's head draws this noise (b, h, a) and these times (b)."""
    uniform = (noise + 1) / 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *shape, **_: uniform.reshape(shape))
        patch.setattr(torch, "rand_like", lambda like: uniform.reshape(like.shape))
        patch.setattr(torch.distributions.Beta, "sample", lambda self, shape: time)
        yield

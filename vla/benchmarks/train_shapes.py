"""The models of `vla bench train`, for `vla train` and for LeRobot, with random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from vla.datasets.mixture import Mixture
from vla.models.action_tokenizers.fast import FastTokenizer
from vla.models.backbones.backbone import Backbone
from vla.models.backbones.build import build
from vla.models.build import with_head
from vla.models.chat import ChatFormat
from vla.models.processor import Processor
from vla.models.released.registry import open_policy
from vla.models.special_tokens import PAD, SPECIAL_TOKENS
from vla.models.vla import VLA
from vla.training.action_head import head_settings
from vla.training.demonstrations import Demonstrations, robot_specs

MARKS = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
"""Additional special tokens of SmolVLM's tokenizer."""
FAST_ROWS = 1025
"""Vocabulary size of FAST's tokens and the action query token."""


@dataclass(frozen=True)
class Shape:
    """A model.

    Attributes:
        policy: LeRobot's policy.
        parameters: The number of parameters, as text.
        model: The configuration of transformers, whose vocabulary excludes action tokens.
        image_size: The size of images [px].
        chunk: The horizon of an action chunk.
        head: The action head, as in `vla train head=`.
    """

    policy: Literal["smolvla", "pi0_fast"]
    parameters: str
    model: Mapping[str, Any]
    image_size: int
    chunk: int
    head: Mapping[str, Any]

    @property
    def words(self) -> int:
        return int(self.model["text_config"]["vocab_size"])


def _smolvlm(text: Mapping[str, Any], vision: Mapping[str, Any], scale: int) -> dict[str, Any]:
    text = {"model_type": "llama", "max_position_embeddings": 8192, "pad_token_id": 0, "head_dim": 64, **text}
    return {
        "model_type": "smolvlm",
        "text_config": text,
        "vision_config": vision,
        "scale_factor": scale,
        "image_token_id": 3,
        "pad_token_id": 0,
    }


def _paligemma(text: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model_type": "paligemma",
        "text_config": {"model_type": "gemma", "num_key_value_heads": 1, "pad_token_id": 0, **text},
        "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False, **vision},
        "image_token_index": 3,
        "projection_dim": text["hidden_size"],
    }


def _sizes(width: int, inner: int, layers: int, heads: int, **more: int) -> dict[str, int]:
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    return sizes | {"num_attention_heads": heads} | more


def _smolvla(parameters: str, model: Mapping[str, Any], chunk: int, width: int, mlp_size: int) -> Shape:
    head = {"kind": "flow", "width": width, "mlp_size": mlp_size}
    return Shape("smolvla", parameters, model, model["vision_config"]["image_size"], chunk, head)


def _pi0_fast(parameters: str, model: Mapping[str, Any], chunk: int) -> Shape:
    return Shape("pi0_fast", parameters, model, model["vision_config"]["image_size"], chunk, {"kind": "fast"})


SMALL_VISION = _sizes(128, 512, 4, 4, image_size=96, patch_size=16)
SMALL_LANGUAGES = (
    _sizes(192, 512, 4, 6, num_key_value_heads=2, head_dim=32, vocab_size=1024),
    _sizes(192, 768, 4, 4, head_dim=48, vocab_size=1024),
)
TINY = (
    _smolvla("tiny", _smolvlm(SMALL_LANGUAGES[0], SMALL_VISION, 2), chunk=16, width=144, mlp_size=512),
    _pi0_fast("tiny", _paligemma(SMALL_LANGUAGES[1], SMALL_VISION), chunk=16),
)
"""Models for a CPU."""
SMOLVLM2 = _smolvlm(
    _sizes(960, 2560, 16, 15, num_key_value_heads=5, vocab_size=49280),
    _sizes(768, 3072, 12, 12, image_size=512, patch_size=16),
    4,
)
PALIGEMMA = _paligemma(
    _sizes(2048, 16384, 18, 8, head_dim=256, vocab_size=256127),
    _sizes(1152, 4304, 27, 16, image_size=224, patch_size=14),
)
REAL = (
    _smolvla("0.5 B", SMOLVLM2, chunk=50, width=720, mlp_size=2048),
    _pi0_fast("3 B", PALIGEMMA, chunk=50),
)
"""SmolVLA (SmolVLM2-500M's first 16 layers, with its action expert) and pi0-FAST (PaliGemma 3B at 224 pixels)."""


def words(count: int) -> Tokenizer:
    """A word-level tokenizer with `count` tokens; unknown words have the last one."""
    names = [*SPECIAL_TOKENS, *MARKS]
    names += [f"w{i}" for i in range(count - len(names))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=names[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [AddedToken(name, special=True) for name in (*SPECIAL_TOKENS, *MARKS)]
    tokenizer.add_special_tokens(special)
    return tokenizer


def ours(shape: Shape, data: str, policy: Path | None = None) -> tuple[VLA, Mixture]:
    """The model of this shape in `vla train` for the robot of the store `data`, and the training data.

    Args:
        policy: LeRobot's policy, whose weights the model has; without it they are random.
    """
    demonstrations = Demonstrations.open(data)
    mixture = Mixture({"robot": demonstrations.windows(shape.chunk)}, {"robot": 1.0}, seed=0)
    # LeRobot's models do not predict points.
    robots = [replace(robot, points=0) for robot in robot_specs([demonstrations], shape.chunk)]
    if policy is not None:
        return open_policy(policy).model(robots), mixture
    # Eager attention trains faster on a CPU at these lengths (as in nano).
    attention = "sdpa" if torch.cuda.is_available() else "eager"
    head = head_settings(shape.head, [demonstrations], robots)
    state_encoding = "text" if shape.policy == "pi0_fast" else "numbers"
    return with_head(*random_backbone(shape, attention), robots, head, state_encoding), mixture


def random_backbone(shape: Shape, attention: str) -> tuple[Backbone, Processor]:
    """The backbone of the shape with its processor, as `vla train` opens a released one."""
    settings = {"family": shape.model["model_type"], "model": shape.model, "image_size": shape.image_size}
    settings |= {"image_token_id": 3, "mean": [0.5] * 3, "std": [0.5] * 3, "attention": attention}
    made, chat = build(settings), ChatFormat(prefix_lm=settings["family"] == "paligemma")
    return made, Processor(words(shape.words), made.image_size, made.tokens_per_image, chat=chat)


def save_for_lerobot(shape: Shape, data: str | None, folder: Path) -> None:
    """Saves what LeRobot would load from a hub: the configuration, the text tokenizer, and an action tokenizer."""
    from transformers import AutoConfig

    fast = shape.policy == "pi0_fast"
    rows = shape.words + (FAST_ROWS if fast else 0)
    text = dict(shape.model["text_config"]) | {"vocab_size": rows}
    AutoConfig.for_model(**{**shape.model, "text_config": text}).save_pretrained(folder)
    tokenizer = released_tokenizer(rows)
    if fast:
        tokenizer.save_pretrained(folder)
        if data is not None:
            _train_fast(shape, data, folder)
        return
    from transformers import SmolVLMImageProcessor, SmolVLMProcessor
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

    processors: dict[str, Any] = {
        "image_processor": SmolVLMImageProcessor(),
        "video_processor": SmolVLMVideoProcessor(),
    }
    SmolVLMProcessor(tokenizer=tokenizer, **processors).save_pretrained(folder)


def released_tokenizer(rows: int) -> Any:
    """The tokenizer `words` as transformers would load it from a hub."""
    from transformers import PreTrainedTokenizerFast

    named = dict(zip(("fake_image_token", "global_image_token", "end_of_utterance_token"), MARKS, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=words(rows),
        pad_token=PAD,
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens={"image_token": "<image>", **named},
    )


def _train_fast(shape: Shape, data: str, folder: Path) -> None:
    """Trains FAST on chunks normalised by mean and standard deviation, as in LeRobot; saves the maximum length."""
    demonstrations = Demonstrations.open(data)
    store, spec = demonstrations.store, robot_specs([demonstrations], shape.chunk)[0]
    mean, spread = store.action[:].mean(0), store.action[:].std(0)

    def chunks() -> Iterator[Any]:
        for record in store.records:
            actions = store.action[record.frames]
            indices = np.minimum(np.arange(len(actions))[:, None] + np.arange(spec.horizon), len(actions) - 1)
            yield (actions[indices] - mean) / (spread + 1e-8)

    tokenizer = FastTokenizer.train(chunks)
    tokenizer.save(folder)
    longest = max(len(tokenizer.encode(chunk)) for chunks_of_episode in chunks() for chunk in chunks_of_episode)
    # Plus <bos>, "Action", ":" and "|".
    (folder / "lengths.json").write_text(json.dumps({"actions": longest + 4}))

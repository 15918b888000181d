"""OpenVLA (Kim et al. 2024, arXiv 2406.09246) and OpenVLA-OFT, as published on the hub.

OpenVLA writes actions with the last 256 tokens of Llama's vocabulary, after the token of an empty text. In our model
these are the head's tokens, and a copy of the empty text's is the action query token. The rest of the vocabulary's
rows, which pad it to a multiple of 64, is left out, except for one as the query token's output.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from vla.common.images import sides
from vla.errors import InputError, reading
from vla.models.backbones.own_family import converted, filled, released_config
from vla.models.backbones.precision import without_dtype
from vla.models.backbones.prismatic import Prismatic, rules, vision_of
from vla.models.chat import ChatFormat, token_id
from vla.models.normalization import Normalizer
from vla.models.policy_format import PolicyFormat, RobotPrompt
from vla.models.preprocessing.frames import Stretch
from vla.models.preprocessing.markup import Markup
from vla.models.preprocessing.settings import Preprocessing
from vla.models.processor import Processor
from vla.models.released.openvla_files import (
    COPY,
    SMALLEST,
    choose,
    mask_of,
    normalizer_of,
    read_statistics,
    read_tokenizer,
)
from vla.models.released.openvla_oft import OftHead, read_head
from vla.models.released.robot_policy import RobotPolicy
from vla.models.released.weight_files import read_weights
from vla.models.special_tokens import TextTokens

BINS, PADDING = 256, 64
"""Number of action tokens, and the multiple to which the vocabulary is padded."""
PROMPT = "In: What action should the robot take to {task}?\nOut:"
EMPTY, EOS, UNKNOWN = "▁", "</s>", "<unk>"
"""Tokens of Llama's tokenizer: of an empty text, and special ones. `UNKNOWN`, which no text has, stands for images."""
EMBEDDING, OUTPUT = "model.model.embed_tokens.weight", "model.lm_head.weight"
EXPECTED = {"arch_specifier": "no-align+fused-gelu-mlp", "image_resize_strategy": "resize-naive", "n_action_bins": BINS}
"""Settings of all published checkpoints."""


def load_openvla(
    folder: Path, unnorm_key: str | None = None, horizon: int | None = None, crop: float = 1.0
) -> RobotPolicy:
    """Opens a folder of OpenVLA or OpenVLA-OFT, and prints which action components are not normalised.

    Args:
        folder: with config.json, *.safetensors and tokenizer.json; if fine-tuned, with dataset_statistics.json.
        unnorm_key: the dataset whose statistics are used; needed to act where there are several.
        horizon: number of steps of a chunk of OpenVLA-OFT, by default that of the robot with as many components.
        crop: the area of the image that is kept, around its centre: 0.9 after training with image augmentation.

    Raises:
        InputError: for an unknown dataset, and for settings or weights that are not those of the two.
    """
    folder = Path(folder)
    config = released_config(folder, model_type="openvla")
    _check(folder, config)
    statistics = read_statistics(folder, config)
    key = choose(statistics, unnorm_key)
    oft, released = read_head(folder, horizon), read_weights(folder)
    with reading(folder, COPY):
        arguments, weights = prepared(
            config, released, read_tokenizer(folder, _words(config, released)), oft is not None
        )
    del released
    backbone: Any = filled(Prismatic, arguments | {"area": crop}, weights, torch.float32)
    text_vocab = backbone.vocab_size - 1 - (BINS if oft is None else 0)
    action = state = None
    if key is not None:
        with reading(f"{folder}: the statistics of {key}", COPY):
            action, state = _normalizers(statistics[key], oft)
            _report(folder, key, statistics[key]["action"])
    missing = "it is a base, train it on demonstrations first"
    if key is None and statistics:
        missing = f"choose one of its datasets as unnorm_key: {', '.join(sorted(statistics))}"
    return RobotPolicy(
        name=str(folder),
        backbone=backbone,
        processor=_processor(read_tokenizer(folder, text_vocab), backbone, text_vocab, oft),
        head={"kind": "bins", "bins": "openvla"} if oft is None else oft.settings,
        weights={} if oft is None else oft.weights,
        horizon=1 if oft is None else oft.horizon,
        state=state,
        action=action,
        cameras=("image",) if oft is None else (),
        missing=missing,
    )


def prepared(
    config: Mapping[str, Any], released: Mapping[str, Tensor], tokenizer: Tokenizer, oft: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The arguments of `Prismatic`, and its weights.

    Args:
        tokenizer: with all words of Llama's vocabulary.
        oft: the query token's embedding is zero, and prompts are read in both directions.
    """
    weights, words = converted(released, rules(released)), _words(config, released)
    table, output = weights[EMBEDDING], weights[OUTPUT]
    query = torch.zeros_like(table[0]) if oft else table[token_id(tokenizer, EMPTY)]
    weights[EMBEDDING] = torch.cat([table[:words], query[None]])
    weights[OUTPUT] = output[: words + 1].clone()
    vision = vision_of(released)
    arguments = {
        # A row for padding would get no gradients, and is the query token's here.
        "model": {**without_dtype(config["text_config"]), "vocab_size": words + 1, "pad_token_id": None},
        "vision": vision,
        "bidirectional": oft,
        "image_token_id": token_id(tokenizer, UNKNOWN),
        "image_size": vision["siglip"]["image_size"],
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
    }
    return arguments, weights


def _words(config: Mapping[str, Any], released: Mapping[str, Tensor]) -> int:
    """Size of the vocabulary without padding."""
    rows = len(released["language_model.model.embed_tokens.weight"])
    return rows - int(config.get("pad_to_multiple_of", PADDING))


def _check(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises InputError for another vision encoder, language model or preprocessing."""
    encoders, text = str(config.get("vision_backbone_id")), config.get("text_config") or {}
    if not encoders.startswith("dinosiglip-"):
        raise InputError(f"{folder} has the vision encoders {encoders}: only dinosiglip is supported")
    if text.get("model_type") != "llama":
        raise InputError(f"{folder} has a language model of the type {text.get('model_type')}: only llama is supported")
    for name, value in EXPECTED.items():
        if config.get(name, value) != value:
            raise InputError(f"{folder}: {name} is {config[name]}, and only {value} is supported")


def _processor(tokenizer: Tokenizer, backbone: Prismatic, text_vocab: int, oft: OftHead | None) -> Processor:
    size = sides(backbone.image_size)
    markup = Markup(tokens=backbone.tokens_per_image)
    # Pillow's filters are those of the original: OFT's images are resized as its training data were.
    images = Preprocessing(Stretch(size, "pillow-bicubic" if oft is None else "lanczos"), markup)
    # OFT's prompt ends with the empty text, which is OpenVLA's action query token.
    prompt = RobotPrompt(PROMPT + (" " if oft else ""), lowered=True, opened=True)
    state = "image" if oft is not None and oft.state_dim else "none"
    chat = ChatFormat(
        begin="",
        question="In: ",
        answer="\nOut:",
        end=EOS,
        again="In: ",
        reply="",
        prefix_lm=oft is not None,
        bos=True,
        apart=True,
        policy=PolicyFormat(prompt, images, state=state),
    )
    return Processor(
        tokenizer,
        backbone.image_size,
        backbone.tokens_per_image,
        mean=backbone.mean,
        std=backbone.std,
        chat=chat,
        tokens=TextTokens.of(tokenizer, backbone.image_token_id, token_id(tokenizer, EOS), text_vocab),
        images=images,
    )


def _normalizers(statistics: Mapping[str, Any], oft: OftHead | None) -> tuple[Normalizer, Normalizer | None]:
    """The normalisation of actions, and of states where the policy takes them."""
    if oft is None:
        return normalizer_of(statistics["action"], ("q01", "q99"), 0.0), None
    action = normalizer_of(statistics["action"], oft.ends, SMALLEST)
    return action, normalizer_of(statistics["proprio"], oft.ends, SMALLEST) if oft.state_dim else None


def _report(folder: Path, key: str, action: Mapping[str, Any]) -> None:
    """Prints which action components have no normalisation, for the user to compare with the robot's."""
    low, high = action["min"], action["max"]
    for i in (i for i, masked in enumerate(mask_of(action)) if not masked):
        print(
            f"{folder}: action component {i + 1} of {key} is not normalised (from {low[i]:g} to {high[i]:g} in the "
            "data). A gripper's convention is not stored: check whether your robot's has the same range and direction",
            flush=True,
        )

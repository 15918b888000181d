"""Released vision-language models as backbones: from a hub's id or a local folder, through transformers' classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import cached_file

from vla.errors import InputError
from vla.images import Size
from vla.vlm import molmo, qwen_vl
from vla.vlm.backbone import Backbone
from vla.vlm.idefics import Idefics
from vla.vlm.mllama import Mllama
from vla.vlm.released import Released, family_of
from vla.vlm.token_family import LAYOUTS, TokenFamily

OWN: dict[str, Callable[..., Any]] = {"qwen": qwen_vl.load, "molmo": molmo.load}
"""Families written here, by the model_type of their config.json: of a folder with the released files."""
CLASSES: dict[str, type[Released]] = {**dict.fromkeys(LAYOUTS, TokenFamily), "idefics": Idefics, "mllama": Mllama}
RUNS = {
    "pixtral": {"between": "[IMG_BREAK]", "end": "[IMG_END]"},
    "internvl": {"begin": "<img>", "end": "</img>"},
    "qwen2_vl": {"begin": "<|vision_start|>", "end": "<|vision_end|>"},
    "qwen2_5_vl": {"begin": "<|vision_start|>", "end": "<|vision_end|>"},
    "smolvlm": {"begin": "<fake_token_around_image><global-img>", "end": "<fake_token_around_image>"},
    "idefics": {"begin": "<fake_token_around_image>", "end": "<fake_token_around_image>"},
    "minigpt-4": {"begin": "<Img>", "end": "</Img>"},
}
"""What each family writes around an image's tokens, and between their rows."""
NATIVE_SIZE = 448
"""[pixels] The side of images where the checkpoint takes any (Qwen): 256 tokens an image."""
CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def load(
    name: str | Path,
    image_size: Size | None = None,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
) -> tuple[Backbone, PreTrainedTokenizerFast]:
    """The backbone of a released checkpoint, a hub's id or a folder, and its tokenizer.

    `image_size` is the side of the square images [pixels], by default the checkpoint's own; `attention` is as in
    `Released`. The vocabulary has at
    least the tokenizer's rows; spare ones stay. Raises InputError when there is no such checkpoint, or when its family
    is not one of `CLASSES`.
    """
    if not isinstance(image_size, int | None):
        raise InputError(f"{name} takes square images: give image_size as one number")
    file = Path(name) / "config.json"
    if file.is_file() and (own := OWN.get(json.loads(file.read_text()).get("model_type"))):
        return own(name, image_size, dtype)
    try:
        config = AutoConfig.from_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"{name} is not a checkpoint that transformers can load: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(f"{name} has a tokenizer in Python: save it as tokenizer.json first")
    family = family_of(config)
    if family not in CLASSES:
        raise InputError(f"{name} is of the family {family}: choose of {', '.join(CLASSES)}")
    text = config.get_text_config()
    if text.is_encoder_decoder:
        raise InputError(f"{name} answers with an encoder-decoder ({text.model_type}): choose one with a decoder")
    weights = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, attn_implementation=attention)
    image_token_id: Any = getattr(config, "image_token_id", None)
    if image_token_id is None:
        image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    normalised = pixels(name)
    run = RUNS.get("minigpt-4" if family == "blip-2" and text.model_type == "llama" else family, {})
    backbone: Any = CLASSES[family](
        config.to_dict(),
        image_token_id=image_token_id,
        image_size=image_size or side_of(config.vision_config),
        mean=normalised["image_mean"],
        std=normalised["image_std"],
        **{where: tokenizer.encode(mark, add_special_tokens=False) for where, mark in run.items()},
        attention=attention,
        weights=weights,
    )
    if (missing := max(len(tokenizer), image_token_id + 1) - backbone.vocab_size) > 0:
        backbone.add_rows(missing)
    return backbone, tokenizer


def side_of(vision_config: Any) -> int:
    """The side of the images that a vision encoder was trained on [pixels]."""
    size = getattr(vision_config, "image_size", NATIVE_SIZE)
    return int(size if isinstance(size, int) else size[0])


def pixels(name: str | Path) -> dict[str, Any]:
    """Mean and standard deviation that the checkpoint's images are normalised with; CLIP's, where it does not say."""
    for file in ("processor_config.json", "preprocessor_config.json"):
        path = cached_file(
            name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
        if path is not None:
            values = json.loads(Path(path).read_text())
            values = values.get("image_processor", values)
            if "image_mean" in values:
                return values
    return CLIP

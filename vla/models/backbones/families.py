"""Loads released vision-language models as backbones, from the hub or a local folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, PreTrainedTokenizerFast

from vla.common.images import Size
from vla.errors import InputError
from vla.models.backbones import catalog, molmo, qwen_vl
from vla.models.backbones.backbone import Backbone
from vla.models.backbones.hf_backbone import CrossAttending, HFBackbone, family_of
from vla.models.backbones.idefics import Idefics
from vla.models.backbones.mllama import Mllama
from vla.models.backbones.token_family import LAYOUTS, TokenFamily
from vla.models.preprocessing.adapted import size_of
from vla.models.preprocessing.markup import Markup
from vla.models.preprocessing.molmo_crops import MARGIN, POOL, Crops
from vla.models.preprocessing.native import Native, Patches
from vla.models.preprocessing.released import SIZES, framing_of, preprocessor_of
from vla.models.preprocessing.settings import Preprocessing

OWN: dict[str, Callable[..., Any]] = {"qwen": qwen_vl.load, "molmo": molmo.load}
"""Loaders of families that are implemented in this package, by model_type; they read a folder of released files."""
CLASSES: dict[str, type[HFBackbone]] = {**dict.fromkeys(LAYOUTS, TokenFamily), "idefics": Idefics, "mllama": Mllama}
NATIVE_SIZE = 448
"""Nominal side of an image [pixels] for backbones that take any size (Qwen): 256 tokens."""


def load(
    name: str | Path,
    image_size: Size | None = None,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
) -> tuple[Backbone, PreTrainedTokenizerFast]:
    """Loads the backbone of a released checkpoint and its tokenizer.

    The vocabulary is extended to the size of the tokenizer where it is smaller.

    Args:
        name: id on the hub, or a folder.
        image_size: side of a frame [pixels], by default the checkpoint's.
        attention: as in `HFBackbone`.

    Raises:
        InputError: when there is no such checkpoint, or its family is not in `CLASSES`.
    """
    if not isinstance(image_size, int | None):
        raise InputError(f"{name} takes square images: give image_size as one number")
    file = Path(name) / "config.json"
    kind = str(json.loads(file.read_text()).get("model_type")) if file.is_file() else ""
    if own := OWN.get(kind):
        return own(name, image_size, dtype)
    if kind == "internvl_chat":
        raise InputError(
            f"{name} is InternVL as it was released: convert it by vla.models.backbones.internvl.convert first"
        )
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
    settings = preprocessor_of(name, catalog.family_of(config.to_dict()).config()["images"])
    backbone: Any = CLASSES[family](
        config.to_dict(),
        image_token_id=image_token_id,
        image_size=image_size or _frame(family, settings, side_of(config.vision_config)),
        mean=settings["image_mean"],
        std=settings["image_std"],
        attention=attention,
        weights=weights,
    )
    if (missing := max(len(tokenizer), image_token_id + 1) - backbone.vocab_size) > 0:
        backbone.add_token_embeddings(missing)
    return backbone, tokenizer


def side_of(vision_config: Any) -> int:
    """Side [pixels] of the images on which a vision encoder was trained."""
    size = getattr(vision_config, "image_size", NATIVE_SIZE)
    return int(size if isinstance(size, int) else size[0])


def _frame(family: str, values: dict[str, Any], side: int) -> int:
    """Side [pixels] of a frame by the settings of an image processor; `side` where frames vary in size."""
    framing = framing_of(family, values, side)
    if isinstance(framing, Native | Patches):
        return side
    height, width = size_of(framing)
    if height != width:
        raise InputError(f"its images are {height} x {width} pixels: only square images are supported")
    return height


def preprocessing_of(name: str | Path, backbone: Any, row: catalog.Family) -> Preprocessing:
    """The image preprocessing and markup of a released checkpoint.

    Args:
        row: the catalog's entry for its family.

    Raises:
        InputError: where its preprocessor cannot be read.
    """
    config, side = row.config(), backbone.image_size
    markup = Markup(**config.get("markup", {}))
    settings = preprocessor_of(name, config["images"])
    framing = framing_of(backbone.family, settings, side)
    if not isinstance(framing, Native | Patches) and size_of(framing) != (side, side):
        framing = framing_of(backbone.family, {k: v for k, v in settings.items() if k not in SIZES}, side)
    if isinstance(framing, Native | Patches):
        return Preprocessing(framing, replace(markup, cell=framing.cell))
    if isinstance(framing, Crops):
        cell = POOL * framing.patch
        return Preprocessing(framing, replace(markup, cell=cell, overlap=MARGIN // POOL))
    shared, split = isinstance(backbone, CrossAttending), backbone.family == "smolvlm"
    return Preprocessing(framing, replace(markup, tokens=backbone.tokens_per_image, shared=shared, split=split))

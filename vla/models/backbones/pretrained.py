"""Opens any backbone by name, with a processor that uses its own chat template and image preprocessing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from vla.common.images import Size
from vla.errors import InputError
from vla.models.backbones import catalog, families
from vla.models.backbones import pip_weights as wheels
from vla.models.backbones.backbone import Backbone
from vla.models.backbones.composed import ComposedVLM
from vla.models.chat import ChatFormat
from vla.models.chat_template import chat_of, template_of
from vla.models.preprocessing.markup import Markup
from vla.models.preprocessing.released import file_of, frame_of, preprocessor_of
from vla.models.preprocessing.settings import Preprocessing
from vla.models.processor import Processor
from vla.models.special_tokens import IMAGE, TextTokens

CLIP, HALF, IMAGENET = (
    {"image_mean": mean, "image_std": std}
    for mean, std in (
        (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
        (IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD),
        (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    )
)
NORMALISED: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("clip", "clip_vision_model"), CLIP),
    **dict.fromkeys(("siglip", "siglip_vision_model", "siglip2", "vit"), HALF),
    **dict.fromkeys(("dinov2", "dinov2_with_registers", "convnext", "convnextv2", "swin", "swinv2"), IMAGENET),
}
"""Pixel mean and standard deviation of vision encoders without a preprocessor file."""
CHATML = "chatml"
"""The chat format in Qwen-VL-Chat's generation_config.json; the base model's is "raw"."""
COMPONENTS = ("vision", "language", "connector", "image_size")


def open_backbone(name: str | Mapping[str, Any]) -> tuple[Backbone, Processor]:
    """Opens a pretrained backbone with its processor.

    Args:
        name: a family (`vla models`), an id on the hub, or a folder of released files; or components: {"vision": id or
            folder, "language": id or folder, "connector": kind with its options, "image_size": n, or [height, width]
            for cameras that are not square}.

    Raises:
        InputError: when there is no such checkpoint, or it cannot be downloaded.
    """
    backbone: Backbone
    if isinstance(name, Mapping):
        backbone, tokenizer = compose(**_checked(name))
        return backbone, make_processor(backbone, tokenizer, catalog.family("composed").config()["chat"])
    if name == "smollm2-dinov2":
        backbone, tokenizer = wheels.smollm2_dinov2()
        return backbone, make_processor(backbone, tokenizer, catalog.family(name).config()["chat"])
    if Path(name).is_dir() or "/" in name:
        return _released(name)
    row = catalog.family(name)
    config = row.config()
    if row.role != "backbone" or row.source or config["checkpoint"] is None:
        reason = f"its released files must be converted first ({row.source})" if row.source else f"it is {row.role}"
        raise InputError(f"{name} cannot be trained by its name: {reason}; give a folder, or another of `vla models`")
    return _released(config["checkpoint"], row)


def make_processor(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerFast,
    chat: Mapping[str, Any],
    images: Preprocessing | None = None,
) -> Processor:
    """The processor of a pretrained backbone.

    Args:
        chat: fields of `ChatFormat`; `end` is by default the tokenizer's end token.
        images: preprocessing; by default images are fitted into the backbone's size.

    Raises:
        InputError: when the tokenizer does not have a token that the format needs.
    """
    words = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    if (image := words.id_to_token(backbone.image_token_id)) is not None:
        words.add_special_tokens([AddedToken(image, special=True)])  # in some tokenizers it is an ordinary token
    end = chat.get("end") or tokenizer.eos_token
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else words.token_to_id(end)
    return Processor(
        words,
        backbone.image_size,
        backbone.tokens_per_image,
        mean=backbone.mean,
        std=backbone.std,
        chat=ChatFormat(**{**chat, "end": end}),
        tokens=TextTokens.of(words, backbone.image_token_id, pad, backbone.vocab_size),
        images=images,
    )


def compose(
    vision: str, language: str, connector: str | Mapping[str, Any] = "mlp", image_size: Size | None = None
) -> tuple[ComposedVLM, PreTrainedTokenizerFast]:
    """Joins a pretrained vision encoder and a pretrained causal language model by a new connector, in float32.

    Args:
        vision, language: ids on the hub or folders.

    Raises:
        InputError: when one of them cannot be read.
    """
    try:
        config: Any = AutoConfig.from_pretrained(vision)
        pixels = preprocessor_of(vision, NORMALISED.get(config.model_type, {}))
        # For a dual encoder (CLIP, SigLIP) its vision encoder.
        vision_config = getattr(config, "vision_config", config)
        encoder: Any = AutoModel.from_pretrained(vision, config=vision_config, dtype=torch.float32)
        decoder: Any = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
        tokenizer: Any = AutoTokenizer.from_pretrained(language)
    except (OSError, ValueError) as error:
        raise InputError(f"a component of the backbone cannot be read: {error}") from error
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    backbone = ComposedVLM(
        encoder.config.to_dict(),
        decoder.config.to_dict(),
        image_size or frame_of(pixels) or families.side_of(encoder.config),
        tokenizer.convert_tokens_to_ids(IMAGE),
        connector={"kind": connector} if isinstance(connector, str) else connector,
        mean=pixels["image_mean"],
        std=pixels["image_std"],
    )
    backbone.vision.model.load_state_dict(encoder.state_dict())
    backbone.language.load_state_dict(decoder.state_dict())
    if (missing := len(tokenizer) - backbone.vocab_size) > 0:
        backbone.add_token_embeddings(missing)
    return backbone, tokenizer


def _checked(components: Mapping[str, Any]) -> dict[str, Any]:
    keys = components.keys()
    if wrong := [*sorted(keys - set(COMPONENTS)), *sorted({"vision", "language"} - keys)]:
        raise InputError(
            f"a composed backbone has {', '.join(COMPONENTS)}, the first two required: check {', '.join(wrong)}"
        )
    return dict(components)


def _released(name: str, row: catalog.Family | None = None) -> tuple[Backbone, Processor]:
    """Opens a released checkpoint, of the family `row` or of that in its configuration, with its chat template."""
    attention = None if row is None else row.config()["attention"]
    backbone, tokenizer = families.load(name, attention=attention)
    if row is None:
        row = _family_of(name)
        if row.name == "llava-1" and tokenizer.convert_tokens_to_ids("<im_start>") in (None, tokenizer.unk_token_id):
            row = catalog.family("llava-1.5")
            print(f"{name}: its tokenizer has no <im_start>, so it is not LLaVA before version 1: read as {row.name}")
    config, markup = row.config(), Markup(**row.config().get("markup", {}))
    images = families.preprocessing_of(name, backbone, row)
    template = template_of(name, tokenizer)
    chat = ChatFormat(**config["chat" if template or "base" not in config else "base"])
    if template is not None:
        image = tokenizer.convert_ids_to_tokens(backbone.image_token_id)
        try:
            chat = chat_of(tokenizer, template, markup, str(image), config.get("system"), chat)
        except InputError as error:
            print(f"{name}: {error}; it uses the chat format of the family {row.name}", flush=True)
    return backbone, make_processor(backbone, tokenizer, chat.to_dict(), images)


def _family_of(name: str) -> catalog.Family:
    file = Path(name) / "config.json"
    values = json.loads(file.read_text()) if file.is_file() else AutoConfig.from_pretrained(name).to_dict()
    if (
        values.get("model_type") == "qwen"
        and (file_of(name, "generation_config.json") or {}).get("chat_format") == CHATML
    ):
        return catalog.family("qwen-vl-chat")
    return catalog.family_of(values)

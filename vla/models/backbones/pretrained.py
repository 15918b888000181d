"""Any backbone by what it is called, with the processor that speaks to it as it was taught."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from vla.common.images import Size
from vla.errors import InputError
from vla.models.backbones import catalog, families
from vla.models.backbones import pip_weights as wheels
from vla.models.backbones.backbone import Backbone
from vla.models.backbones.composed import ComposedVLM
from vla.models.chat import ChatFormat
from vla.models.preprocessing.chat_template import chat_of, template_of
from vla.models.preprocessing.markup import Markup
from vla.models.preprocessing.released import file_of, frame_of, preprocessor_of
from vla.models.preprocessing.settings import Preprocessing
from vla.models.processor import IMAGE, Processor

HALF, IMAGENET = [0.5, 0.5, 0.5], {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
NORMALISED: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("clip", "clip_vision_model"), families.CLIP),
    **dict.fromkeys(("siglip", "siglip_vision_model", "siglip2", "vit"), {"image_mean": HALF, "image_std": HALF}),
    **dict.fromkeys(("dinov2", "dinov2_with_registers", "convnext", "convnextv2", "swin", "swinv2"), IMAGENET),
}
"""Mean and deviation that encoders were trained with, for those without a preprocessor's file."""
CHATML = "chatml"
"""What Qwen-VL-Chat's generation_config.json calls its format; that of the base model has "raw"."""
PARTS = ("vision", "language", "connector", "image_size")


def open_backbone(name: str | Mapping[str, Any]) -> tuple[Backbone, Processor]:
    """The backbone that is the name of a family (`vla models`), a hub's id or a folder of released files; or one made
    of parts: {"vision": id or folder, "language": id or folder, "connector": kind with its options, "image_size": n,
    or [height, width] of cameras that are not square}.

    Raises InputError when there is no such checkpoint, or it cannot be had from here.
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
        why = f"its released files must be converted first ({row.source})" if row.source else f"it is {row.role}"
        raise InputError(f"{name} cannot be trained by its name: {why}; give a folder, or another of `vla models`")
    return _released(config["checkpoint"], row)


def make_processor(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerFast,
    chat: Mapping[str, Any],
    images: Preprocessing | None = None,
) -> Processor:
    """The processor of a pretrained backbone; a `chat` without an `end` has the tokenizer's. Without `images` they are
    fitted into the backbone's size.

    Raises InputError when the tokenizer lacks what the format needs.
    """
    words = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    if (image := words.id_to_token(backbone.image_token_id)) is not None:
        words.add_special_tokens([AddedToken(image, special=True)])  # some write it as a word like any other
    end = chat.get("end") or tokenizer.eos_token
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else words.token_to_id(end)
    return Processor(
        words,
        backbone.image_size,
        backbone.tokens_per_image,
        mean=backbone.mean,
        std=backbone.std,
        chat=ChatFormat(**{**chat, "end": end}),
        image=backbone.image_token_id,
        pad=pad,
        text_vocab=backbone.vocab_size,
        images=images,
    )


def compose(
    vision: str, language: str, connector: str | Mapping[str, Any] = "mlp", image_size: Size | None = None
) -> tuple[ComposedVLM, PreTrainedTokenizerFast]:
    """A pretrained vision encoder and a pretrained causal language model, ids or folders, joined by a new connector; in
    float32, whatever their files hold.

    Raises InputError when one of them cannot be read.
    """
    try:
        config: Any = AutoConfig.from_pretrained(vision)
        pixels = preprocessor_of(vision, NORMALISED.get(config.model_type, {}))
        # Of a dual encoder (CLIP, SigLIP) its images' half.
        seen = getattr(config, "vision_config", config)
        encoder: Any = AutoModel.from_pretrained(vision, config=seen, dtype=torch.float32)
        decoder: Any = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
        tokenizer: Any = AutoTokenizer.from_pretrained(language)
    except (OSError, ValueError) as error:
        raise InputError(f"a part of the backbone cannot be read: {error}") from error
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


def _checked(parts: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := [*sorted(parts.keys() - set(PARTS)), *sorted({"vision", "language"} - parts.keys())]:
        raise InputError(
            f"a backbone of parts has {', '.join(PARTS)}, the first two at least: see {', '.join(unknown)}"
        )
    return dict(parts)


def _released(name: str, row: catalog.Family | None = None) -> tuple[Backbone, Processor]:
    """A released checkpoint, of the family `row` or of that which its configuration says, with its own chat
    template where it has one."""
    attention = None if row is None else row.config()["attention"]
    backbone, tokenizer = families.load(name, attention=attention)
    if row is None:
        row = _family_of(name)
        if row.name == "llava-1" and tokenizer.convert_tokens_to_ids("<im_start>") in (None, tokenizer.unk_token_id):
            row = catalog.family("llava-1.5")
            print(f"{name}: its tokenizer has no <im_start>, so it is no LLaVA of before version 1: read as {row.name}")
    config, markup = row.config(), Markup(**row.config().get("markup", {}))
    images = families.preprocessing_of(name, backbone, row)
    template = template_of(name, tokenizer)
    chat = ChatFormat(**config["chat" if template or "base" not in config else "base"])
    if template is not None:
        image = tokenizer.convert_ids_to_tokens(backbone.image_token_id)
        try:
            chat = chat_of(tokenizer, template, markup, str(image), config.get("system"), chat)
        except InputError as error:
            print(f"{name}: {error}; its conversations are written as the family {row.name} does", flush=True)
    return backbone, make_processor(backbone, tokenizer, asdict(chat), images)


def _family_of(name: str) -> catalog.Family:
    file = Path(name) / "config.json"
    values = json.loads(file.read_text()) if file.is_file() else AutoConfig.from_pretrained(name).to_dict()
    if (
        values.get("model_type") == "qwen"
        and (file_of(name, "generation_config.json") or {}).get("chat_format") == CHATML
    ):
        return catalog.family("qwen-vl-chat")
    return catalog.family_of(values)

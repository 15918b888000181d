"""Loads OpenFlamingo's released weights: its resampler and gated layers, for their CLIP and language model.

A released checkpoint.pt contains `perceiver.*`; under "lang_encoder." the language model's embeddings and the gated
layer of each decoder layer `i`, "<layers>.i.gated_cross_attn_layer.*" (in older files "gated_cross_attn_layers.i.*");
and any other trained weights. CLIP and the rest of the language model come from transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPVisionModel

from vla.errors import InputError
from vla.models.backbones.catalog import family
from vla.models.backbones.flamingo import CrossAttentionVLM
from vla.models.backbones.pretrained import make_processor
from vla.models.preprocessing.markup import Markup
from vla.models.preprocessing.released import framing_of
from vla.models.preprocessing.settings import Preprocessing
from vla.models.processor import Processor

GATED = re.compile(r"^lang_encoder\.(?:gated_cross_attn_layers\.(\d+)|.+\.(\d+)\.gated_cross_attn_layer)\.(.+)$")
OURS = {
    "attn.norm.": "norm.",
    "attn.": "attention.",
    "attn_gate": "attention_gate",
    "norm_media.": "norm_features.",
    "norm_latents.": "norm_latents.",
    "to_": "attention.to_",
}
"""Renamed prefixes in a gated layer and in the attention of a resampler layer; the first match applies."""


def rename(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """The weights with the names of `CrossAttentionVLM`, and the spacing of the gated layers.

    Raises:
        InputError: when latents or gated layers are missing, or the latter are not evenly spaced.
    """
    renamed: dict[str, Tensor] = {}
    gated: dict[int, dict[str, Tensor]] = {}
    for name, weight in weights.items():
        name = name.removeprefix("module.")
        if match := GATED.match(name):
            gated.setdefault(int(match[1] or match[2]), {})[_ours(match[3])] = weight
        elif match := re.match(r"^perceiver\.layers\.(\d+)\.([01])\.(.+)$", name):
            inner = _ours(match[3]) if match[2] == "0" else f"ff.{match[3]}"
            renamed[f"connector.layers.{match[1]}.{inner}"] = weight
        elif name.startswith("perceiver."):
            renamed[name.replace("perceiver.", "connector.", 1)] = weight
        elif name.startswith("lang_encoder.") and "old_decoder_blocks" not in name:
            renamed[name.replace("lang_encoder.", "language.", 1).replace(".decoder_layer.", ".")] = weight
    every = min(gated, default=-1) + 1
    if (
        not every
        or "connector.latents" not in renamed
        or sorted(gated) != list(range(every - 1, max(gated) + 1, every))
    ):
        raise InputError(
            f"these are not OpenFlamingo's weights: they have gated layers at {sorted(gated) or 'no layer'}"
        )
    for i, layer in gated.items():
        renamed |= {f"blocks.{i // every}.{name}": weight for name, weight in layer.items()}
    return renamed, every


def load(checkpoint: Path, vision: str, language: str) -> tuple[CrossAttentionVLM, Processor]:
    """Loads the backbone of a released `checkpoint` and its processor.

    Save `vla.models.vla.VLA` of the two into a folder for `vla train backbone=`.

    Args:
        vision, language: ids or folders of the models on which it was trained: CLIP ViT-L/14, and RedPajama-INCITE-3B
            for OpenFlamingo-4B or MPT-7B for -9B. (MPT-1B of -3B is not in transformers.)

    Raises:
        InputError: when one cannot be read, or the weights do not match them.
    """
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        encoder: Any = CLIPVisionModel.from_pretrained(vision, dtype=torch.float32)
        decoder: Any = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
        tokenizer: Any = AutoTokenizer.from_pretrained(language)
    except (OSError, ValueError) as error:
        raise InputError(f"a file of OpenFlamingo cannot be read: {error}") from error
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endofchunk|>", "<image>"]})
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<PAD>"})
    decoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    renamed, every = rename(content.get("model_state_dict", content))
    config = family("openflamingo").config()
    backbone: Any = CrossAttentionVLM(
        {**encoder.config.to_dict(), "layer": -1},
        decoder.config.to_dict(),
        encoder.config.image_size,
        tokenizer.convert_tokens_to_ids("<image>"),
        connector={"kind": "resampler", **_sizes(renamed)},
        blocks={"kind": "flamingo", "every": every},
        mean=config["images"]["image_mean"],
        std=config["images"]["image_std"],
        weights=decoder,
    )
    backbone.vision.load_state_dict(encoder.state_dict())
    _fill(backbone, renamed)
    framing = framing_of("openflamingo", config["images"], backbone.image_size)
    images = Preprocessing(framing, Markup(tokens=backbone.tokens_per_image))
    return backbone.eval(), make_processor(backbone, tokenizer, config["chat"], images)


def _ours(name: str) -> str:
    start = next((start for start in OURS if name.startswith(start)), "")
    return OURS.get(start, "") + name.removeprefix(start)


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Sizes of the resampler. Like the gated layers it has 8 heads of 64."""
    layers = {name.split(".")[2] for name in weights if name.startswith("connector.layers.")}
    return {"latents": len(weights["connector.latents"]), "layers": len(layers)}


def _fill(backbone: CrossAttentionVLM, weights: Mapping[str, Tensor]) -> None:
    """Loads weights. Raises InputError for missing ones of connector or gated layers, and for unexpected ones."""
    wanted = backbone.state_dict()
    missing = [name for name in wanted if name.startswith(("connector.", "blocks.")) and name not in weights]
    unknown = [name for name in weights if name not in wanted or wanted[name].shape != weights[name].shape]
    if missing or unknown:
        raise InputError(
            "OpenFlamingo's weights do not match these models: "
            f"{len(missing)} missing, {len(unknown)} unexpected, among them {(missing + unknown)[0]}"
        )
    backbone.load_state_dict(weights, strict=False)

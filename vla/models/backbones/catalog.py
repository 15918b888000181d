"""The catalog of supported families of vision-language models, which `vla models` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, cast

from omegaconf import OmegaConf

from vla.errors import InputError, suggestion

Role = Literal["backbone", "dual encoder", "hosted"]

END_TO_END = (
    "the backbone interface; for raw images of several shapes and a question, pixels, tokens and logits equal to those "
    "of transformers' processor, chat template and model; on small random weights, not on released weights"
)
ORIGINAL = (
    "for raw images of several shapes and a question, tokens by the original code's rules, pixels within 2 of 255 "
    "levels of Pillow's, and equal logits; on small random weights, not on released weights"
)
TILES = (
    "from raw images of several shapes, two at once and none, and a question, tiles and tokens by the original code's "
    "rules, pixels equal to Pillow's, and logits equal to a plain reading of the original, on small random weights in "
    "the released layout, and the backbone contract; released weights not tried"
)
CROPS = (
    "the backbone interface; for raw images of several shapes and a question, tokens and crops by the released "
    "processor's rules, pixels within one of 255 levels of it; padding and logits equal to a reimplementation of the "
    "original (test_molmo.py); on small random weights, not on released weights"
)
DUAL = "embeddings and logits equal to transformers', independent of padding and batch; not on released weights"
HOSTED = "against failing servers, and `transformers serve` (test_hosted_serve.py); not against the provider"

VISION, LANGUAGE = "vision", "language"
CHECKS = ("preprocessing", "prompt", "logits")
"""What can be compared with a family's original: image preprocessing, prompt tokens and logits."""


PARAMETERS = {
    "nano": 1.9e6,
    "smollm2-dinov2": 0.16e9,
    "llava-1": 7.1e9,
    "llava-1.5": 7.1e9,
    "blip-2": 3.7e9,
    "minigpt-4": 7.8e9,
    "idefics": 8.9e9,
    "openflamingo": 8.1e9,
    "internvl-1.5": 25.5e9,
    "internvl-2.5": 2.2e9,
    "internvl-3": 0.94e9,
    "llama-3.2-vision": 10.7e9,
    "pixtral": 12.7e9,
    "qwen2-vl": 2.2e9,
    "qwen2.5-vl": 3.8e9,
    "paligemma": 2.9e9,
    "paligemma-2": 3.0e9,
    "smolvlm2": 0.51e9,
    "qwen-vl": 9.6e9,
    "qwen-vl-chat": 9.6e9,
    "molmo": 8.0e9,
    "molmoe": 7.2e9,
    "clip": 0.43e9,
    "align": 0.17e9,
    "siglip": 0.88e9,
    "siglip2": 0.38e9,
}
"""Parameters of the checkpoint that each family names, as published."""


@dataclass(frozen=True)
class Family:
    """A family of the catalog.

    Attributes:
        freezes: modules frozen in the finetune stage, by the family's recipe. (The align stage trains the connector
            only, in every family.)
        test: file of tests/ that verifies the family; empty where there is none.
        verified: what this test shows.
        source: the conversion that the released files need, where transformers cannot read them.
        checked: what is compared with the original, of `CHECKS`.
    """

    name: str
    role: Role
    title: str
    connector: str
    freezes: tuple[str, ...] = ()
    test: str = ""
    verified: str = ""
    source: str = ""
    checked: tuple[str, ...] = ()

    @property
    def config_path(self) -> str:
        """Path of the family's configuration file in the package."""
        return f"configs/families/{self.name}.yaml"

    def config(self) -> dict[str, Any]:
        """The family's file: checkpoint, attention, preprocessing and chat format, or the arguments of `Hosted`."""
        text = (files("vla.configs") / "families" / f"{self.name}.yaml").read_text()
        return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(text)))

    @property
    def load(self) -> str:
        """Code or command that loads the family."""
        config = self.config()
        if self.role == "hosted":
            arguments = f'"{config["model"]}", "{config["base_url"]}", "{config["key_env"]}"'
            return f"vla.models.backbones.hosted.Hosted({arguments})"
        if self.role == "dual encoder":
            return f'vla.models.backbones.dual.DualEncoder.load("{config["checkpoint"]}")'
        if config["checkpoint"] is None:
            return "vla train backbone='{vision: ID, language: ID, connector: mlp}'"
        return f"vla train backbone={'FOLDER' if self.source else self.name}"


def _released(name: str, title: str, connector: str, freezes: tuple[str, ...] = ()) -> Family:
    """A backbone of transformers' own classes, which reads the released files."""
    return Family(
        name, "backbone", title, connector, freezes, "test_released_families.py", END_TO_END, "", checked=CHECKS
    )


def _original(name: str, title: str, connector: str, freezes: tuple[str, ...], source: str) -> Family:
    """A backbone without a processor in transformers, verified end to end against the original code's rules."""
    test = "test_original_families.py"
    return Family(name, "backbone", title, connector, freezes, test, ORIGINAL, source, CHECKS)


def _hosted(name: str, title: str) -> Family:
    return Family(name, "hosted", title, "undisclosed", (), "test_hosted.py", HOSTED)


def _dual(name: str, title: str) -> Family:
    return Family(name, "dual encoder", title, "none: a shared embedding space", (), "test_dual.py", DUAL)


CATALOG: tuple[Family, ...] = (
    Family(
        "nano",
        "backbone",
        "trained by this project, in the package",
        "MLP",
        ("vision.embeddings", "vision.encoder.stages.0", "vision.encoder.stages.1"),
        "test_journey.py",
        "trained, evaluated and deployed in simulation",
    ),
    Family(
        "composed",
        "backbone",
        "any vision encoder and causal LM of transformers",
        "any of vla.models.backbones",
        (VISION,),
        "test_composed.py",
        "the backbone interface for every connector with four kinds of encoder, and for four kinds of language model",
    ),
    Family(
        "smollm2-dinov2",
        "backbone",
        "SmolLM2-135M and DINOv2-small",
        "pixel shuffle, MLP",
        (VISION,),
        "test_wheels.py",
        "on released weights: it answers, vision equals onnxruntime's, and its connector aligns on rendered scenes",
    ),
    _original("llava-1", "LLaVA", "linear", (VISION,), "a delta to LLaMA-7B's weights: there is no converter yet"),
    _released("llava-1.5", "LLaVA-1.5", "MLP", (VISION,)),
    _released("blip-2", "BLIP-2", "Q-Former", (VISION, LANGUAGE)),
    _original(
        "minigpt-4",
        "MiniGPT-4",
        "Q-Former, linear",
        (VISION, LANGUAGE),
        "with BLIP-2's ViT and Q-Former, and Vicuna-v0, by vla.models.backbones.converters.convert_minigpt4",
    ),
    _released(
        "idefics", "Flamingo, open reproduction", "perceiver resampler, gated cross-attention", (VISION, LANGUAGE)
    ),
    _original(
        "openflamingo",
        "Flamingo, OpenFlamingo's weights",
        "perceiver resampler, gated cross-attention",
        (VISION, LANGUAGE),
        "checkpoint.pt onto CLIP ViT-L/14 and its language model, by vla.models.backbones.openflamingo.load",
    ),
    *(
        Family(
            name,
            "backbone",
            title,
            "pixel shuffle, MLP",
            (),
            "test_internvl.py",
            TILES,
            "a folder with the released files, by vla.models.backbones.internvl.convert",
            CHECKS,
        )
        for name, title in (("internvl-1.5", "InternVL-1.5"), ("internvl-2.5", "InternVL-2.5"))
    ),
    _released("internvl-3", "InternVL3", "pixel shuffle, MLP"),
    _released("llama-3.2-vision", "Llama 3.2 Vision", "cross-attention adapter", (LANGUAGE,)),
    _released("pixtral", "Pixtral", "MLP, native resolution", (VISION,)),
    _released("qwen2-vl", "Qwen2-VL", "2x2 merger MLP, native resolution", (VISION,)),
    _released("qwen2.5-vl", "Qwen2.5-VL", "2x2 merger MLP, native resolution", (VISION,)),
    _released("paligemma", "PaliGemma", "linear, prefix-LM"),
    _released("paligemma-2", "PaliGemma 2", "linear, prefix-LM"),
    _released("smolvlm2", "SmolVLM2", "pixel shuffle, linear", (VISION,)),
    *(
        _original(
            name,
            title,
            "256 queries, one cross-attention",
            (VISION,),
            "a folder with the released files, the weights as safetensors",
        )
        for name, title in (("qwen-vl", "Qwen-VL, the base model"), ("qwen-vl-chat", "Qwen-VL-Chat"))
    ),
    *(
        Family(
            name,
            "backbone",
            title,
            "2x2 attention pooling, SwiGLU MLP",
            (),
            "test_molmo_prompt.py",
            CROPS,
            "a folder with the released files",
            CHECKS,
        )
        for name, title in (("molmo", "Molmo"), ("molmoe", "MolmoE"))
    ),
    _dual("clip", "CLIP"),
    _dual("align", "ALIGN"),
    _dual("siglip", "SigLIP"),
    _dual("siglip2", "SigLIP 2"),
    _hosted("gpt-4v", "GPT-4V; retired by its provider in December 2024"),
    _hosted("gpt-4o", "GPT-4o"),
    _hosted("claude-3", "Claude 3"),
    _hosted("gemini", "Gemini 1.5"),
)


def family(name: str) -> Family:
    """The catalog's entry for a family. Raises InputError that lists the known names for an unknown one."""
    for row in CATALOG:
        if row.name == name:
            return row
    known = [row.name for row in CATALOG]
    raise InputError(f"there is no family {name!r}: choose of {', '.join(known)}{suggestion(name, known)}")


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
INTERNVL_TEMPLATES = {"internlm2-chat": "internvl-1.5", "Hermes-2": "internvl-1.5", "internvl2_5": "internvl-2.5"}
"""What a released InternVL calls its conversations, and the family that writes them so; InternVL 2 as 1.5."""


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a checkpoint with this configuration (config.json). Raises InputError for an unknown one."""
    kind, text = str(config.get("model_type")), str((config.get("text_config") or {}).get("model_type", ""))
    vision = str((config.get("vision_config") or {}).get("model_type", ""))
    if kind == "llava" and vision == "pixtral":
        kind = "pixtral"
    elif kind == "paligemma" and text.startswith("gemma2"):
        kind = "paligemma-2"
    elif kind == "llava" and config.get("projector_hidden_act") == "linear":
        kind = "llava-1"
    elif kind == "internvl" and config.get("template") in INTERNVL_TEMPLATES:
        kind = INTERNVL_TEMPLATES[config["template"]]
    elif kind == "internvl" and text == "llama":  # InternLM2, under llama's names
        normed = (config.get("vision_config") or {}).get("use_qk_norm")
        kind = "internvl-1.5" if normed else "internvl-2.5"
    elif kind == "blip-2" and text == "llama":
        kind = "minigpt-4"
    return family(DEFAULTS.get(kind, kind))

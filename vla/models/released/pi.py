"""pi0 and pi0.5 (Physical Intelligence), as LeRobot and openpi's PyTorch port store them.

The sizes are derived from the weights, except for those that a weight does not show: Gemma has 8 query heads
(openpi's `gemma.py`), and So400m heads of 72 components.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.initialization import no_init_weights

from vla.errors import InputError
from vla.models.action_heads.action_expert import MAX_PERIOD, MIN_PERIOD, ActionExpertShape, frequencies
from vla.models.action_heads.flow_matching import EULER_STEPS, FlowLayout
from vla.models.backbones import catalog
from vla.models.backbones.pretrained import make_processor
from vla.models.backbones.token_family import TokenFamily
from vla.models.policy_format import PolicyFormat, RobotPrompt
from vla.models.preprocessing.frames import Stretch
from vla.models.preprocessing.markup import Markup
from vla.models.preprocessing.settings import Preprocessing
from vla.models.released.lerobot_folder import LeRobotFolder
from vla.models.released.openpi_folder import OpenpiFolder
from vla.models.released.robot_policy import OUTPUT, RobotPolicy, count_layers, load_vlm, open_tokenizer
from vla.models.released.weight_names import OURS, expert_names, linear_names, renamed, shifted_norms

TOKENIZER = "google/paligemma-3b-pt-224"
GEMMA_HEADS, SIGLIP_HEAD_DIM, INITIALIZER_RANGE = 8, 72, 0.02
PROMPTS = {
    "pi0": RobotPrompt("{task}\n", max_tokens=48),
    "pi05": RobotPrompt("Task: {task}, State: {state};\nAction: ", cleaned=True, max_tokens=200),
}
WORDS = "model.language_model.embed_tokens.weight"
VLM, EXPERT = "paligemma_with_expert.paligemma.", "paligemma_with_expert.gemma_expert.model."


LINEAR = {"action_in_proj": f"{OURS}action_in_proj", "action_out_proj": f"{OURS}action_out_proj"}
"""Linear layers of both policies."""
OF_KIND = {
    "pi0": {
        "state_proj": f"{OURS}state",
        "action_time_mlp_in": f"{OURS}time.0",
        "action_time_mlp_out": f"{OURS}time.2",
    },
    "pi05": {"time_mlp_in": f"{OURS}time.0", "time_mlp_out": f"{OURS}time.2"},
}
"""Linear layers of one of them."""
RENAMED = {"pi0": ("time_mlp", "action_time_mlp"), "pi05": ("action_time_mlp", "time_mlp")}
"""openpi's name of the time's layers in a file of the other policy."""


def pi_names(kind: str, layers: int) -> dict[str, str]:
    """Our names of the weights outside PaliGemma."""
    return expert_names(EXPERT, layers, kind == "pi05") | linear_names(LINEAR | OF_KIND[kind])


def load_pi(folder: LeRobotFolder | OpenpiFolder) -> RobotPolicy:
    """Opens a folder of pi0 or pi0.5.

    Raises:
        InputError: for settings or weights that are not those of the two.
    """
    config, weights = folder.config, folder.weights()
    kind = str(config["type"])
    if (config.get("min_period", MIN_PERIOD), config.get("max_period", MAX_PERIOD)) != (MIN_PERIOD, MAX_PERIOD):
        raise InputError(f"{folder.path}: the periods of its time are not {MIN_PERIOD} to {MAX_PERIOD}")
    if kind == "pi0" and not folder.state_input:
        raise InputError(
            f"{folder.path} is a pi0, which always has the state as numbers: leave discrete_state_input out"
        )
    tokenizer = open_tokenizer(folder.tokenizer(TOKENIZER))
    vlm = {name.removeprefix(VLM): weight for name, weight in weights.items() if name.startswith(VLM)}
    rest = _head_weights(weights, kind)
    backbone = _backbone(vlm, tokenizer)
    side = backbone.image_size
    markup = Markup(tokens=backbone.tokens_per_image)
    format = PolicyFormat(
        _prompt(kind, folder),
        Preprocessing(folder.framing((side, side)), markup),
        width=len(rest["action_in_proj.weight"][0]),
        state="expert" if kind == "pi0" else "text" if folder.state_input else "none",
        source=folder.source(len(vlm.get(WORDS, vlm.get("lm_head.weight", ())))),
    )
    chat = {**catalog.family("paligemma").config()["chat"], "policy": format}
    layout = FlowLayout(
        state_token=kind == "pi0", noisy_padding=True, steps=config.get("num_inference_steps", EULER_STEPS)
    )
    return RobotPolicy.of_folder(
        folder,
        backbone=backbone,
        processor=make_processor(backbone, tokenizer, chat, Preprocessing(Stretch((side, side)), markup)),
        head={
            "kind": "flow",
            "adaptive": kind == "pi05",
            "expert": asdict(_expert_shape(rest, backbone)),
            "layout": asdict(layout),
        },
        weights=shifted_norms(renamed(rest, pi_names(kind, count_layers(rest, f"{EXPERT}layers."))), 1.0),
    )


def _head_weights(weights: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The weights outside PaliGemma that are used; openpi also keeps pi0's projection of the state in pi0.5."""
    other, own = RENAMED[kind]
    return {
        own + name.removeprefix(other) if name.startswith(f"{other}_") else name: weight
        for name, weight in weights.items()
        if not name.startswith(VLM) and "lm_head" not in name and not (kind == "pi05" and name.startswith("state_proj"))
    }


def _prompt(kind: str, folder: LeRobotFolder | OpenpiFolder) -> RobotPrompt:
    """The prompt of the policy; openpi cleans the instructions of both."""
    prompt = PROMPTS[kind]
    if not folder.state_input:
        prompt = replace(prompt, text=PROMPTS["pi0"].text)
    cleaned = prompt.cleaned or isinstance(folder, OpenpiFolder)
    return replace(prompt, cleaned=cleaned, max_tokens=folder.config.get("tokenizer_max_length", prompt.max_tokens))


def _backbone(weights: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerFast) -> Any:
    """PaliGemma with these weights, whose vocabulary is extended to the tokenizer and the image token."""
    named = dict(weights)
    head = named.pop("lm_head.weight", None)  # tied to the embedding in openpi, and not trained in LeRobot
    if WORDS not in named:
        if head is None:
            raise InputError(f"the policy has neither {WORDS} nor lm_head.weight")
        named[WORDS] = head
    vocab = len(named[WORDS])
    image: Any = tokenizer.convert_tokens_to_ids("<image>")
    image_token_id = max(vocab, len(tokenizer)) if image in (None, tokenizer.unk_token_id) else int(image)
    return paligemma(named, image_token_id, max(vocab, len(tokenizer), image_token_id + 1))


def paligemma(weights: Mapping[str, Tensor], image_token_id: int, vocab: int | None = None) -> TokenFamily:
    """PaliGemma with these weights.

    Args:
        weights: by their names in transformers.
        image_token_id: as in `TokenFamily`.
        vocab: tokens of the embedding, to which random ones are appended and the output layer is tied; by default
            those of `weights`, which have an output layer.

    Raises:
        InputError: where a weight is missing or unexpected.
    """
    tied, named = vocab is not None, dict(weights)
    words = named.pop(WORDS)
    config = _config(weights, vocab or len(words), tied)
    with no_init_weights():
        backbone = TokenFamily(
            config,
            image_token_id=image_token_id,
            image_size=config["vision_config"]["image_size"],
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            prompt={"first_position": 0},
        )
    load_vlm(backbone, named, "PaliGemma", (WORDS, OUTPUT) if tied else (WORDS,))
    embedding = backbone.vocab_weights()[0].data
    embedding[: len(words)] = words
    embedding[len(words) :].normal_(std=INITIALIZER_RANGE)
    return backbone


def _config(weights: Mapping[str, Tensor], vocab: int, tied: bool) -> dict[str, Any]:
    """PaliGemma's configuration, from the shapes of its weights."""
    layer, vision = "model.language_model.layers.0.", "model.vision_tower.vision_model."
    query, key = (len(weights[f"{layer}self_attn.{name}_proj.weight"]) for name in ("q", "k"))
    head_dim = query // GEMMA_HEADS
    mlp, width = weights[f"{layer}mlp.gate_proj.weight"].shape
    hidden, _, _, patch = weights[f"{vision}embeddings.patch_embedding.weight"].shape
    patches = len(weights[f"{vision}embeddings.position_embedding.weight"])
    return {
        "model_type": "paligemma",
        "projection_dim": width,
        "hidden_size": width,
        "image_token_index": vocab,
        "tie_word_embeddings": tied,
        "text_config": {
            "model_type": "gemma",
            "tie_word_embeddings": tied,
            "vocab_size": vocab,
            "hidden_size": width,
            "intermediate_size": mlp,
            "num_hidden_layers": count_layers(weights, "model.language_model.layers."),
            "num_attention_heads": GEMMA_HEADS,
            "num_key_value_heads": key // head_dim,
            "head_dim": head_dim,
            "hidden_activation": "gelu_pytorch_tanh",
            "rope_theta": 10000.0,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": hidden,
            "intermediate_size": len(weights[f"{vision}encoder.layers.0.mlp.fc1.weight"]),
            "num_hidden_layers": count_layers(weights, f"{vision}encoder.layers."),
            "num_attention_heads": hidden // SIGLIP_HEAD_DIM,
            "image_size": int(patches**0.5) * patch,
            "patch_size": patch,
            "projection_dim": width,
            "vision_use_head": False,
        },
    }


def _expert_shape(weights: Mapping[str, Tensor], backbone: Any) -> ActionExpertShape:
    text = backbone.model.config.text_config
    mlp, width = weights[f"{EXPERT}layers.0.mlp.gate_proj.weight"].shape
    return ActionExpertShape(
        width=width,
        mlp_size=mlp,
        layers=count_layers(weights, f"{EXPERT}layers."),
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        frequencies=list(frequencies(text.head_dim)),
    )

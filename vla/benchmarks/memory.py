"""`vla bench memory`: the memory of a training step for three model sizes, by a formula that is checked by measurement.

Weights, gradients, moments and average are fp32; blocks compute in bf16 under autocast; attention is fused; rows have
two images. Autograd saves per layer, in bytes per token (d: width, q: width of all heads, f: width of the MLP): 26 d +
8 q + 8 f in Llama and Gemma, with adapters only 18 d + 10 q + 8 f + 2 x 7 rank; 24 d + 4 f in a ViT. Tensors between
layers, gradients of activations and allocator overhead are not included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vla.common.result_table import Table, Target
from vla.models.backbone_inputs import DecoderInput, ImageInput
from vla.models.backbones.build import build
from vla.training.blocks import blocks
from vla.training.lora import inject

GIB = 2**30
BATCH, TEXT, LABELS, RANK, RANKS = 8, 96, 32, 16, 8
LANGUAGE = r"language\..*"
"""The modules with adapters; the vision encoder saves nothing."""
"""Rows per GPU; text tokens of a row, and those with a loss; the rank of adapters; GPUs of FSDP."""
IMAGES = 2
NARROWER = 8
TOLERANCE = 0.15
STATE = {"weights": 4, "gradients": 4, "moments": 8, "average": 4}
"""Bytes per trained parameter with AdamW; a frozen parameter has only its weight."""


@dataclass(frozen=True)
class Shape:
    """The `text`, `vision` and remaining (`rest`) configuration of a released model."""

    family: str
    text: dict[str, Any]
    vision: dict[str, Any]
    rest: dict[str, Any]

    def backbone(self, divisor: int = 1) -> Any:
        """Makes the backbone with random weights; a `divisor` makes it narrower, with two layers and few tokens."""
        text, vision = ({k: _narrow(k, v, divisor) for k, v in part.items()} for part in (self.text, self.vision))
        rest = self.rest | ({"projection_dim": text["hidden_size"]} if self.family == "paligemma" else {})
        model = {"model_type": self.family, "text_config": text, "vision_config": vision, **rest}
        size = vision["image_size"]
        return build({"family": self.family, "model": model, **PIXELS, "image_token_id": 300, "image_size": size})


PIXELS: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.5] * 3}
WIDTHS = ("hidden_size", "intermediate_size", "head_dim")


def _narrow(key: str, value: Any, divisor: int) -> Any:
    if divisor == 1:
        return value
    return {"num_hidden_layers": 2, "vocab_size": 512}.get(key, value // divisor if key in WIDTHS else value)


def _sizes(hidden: int, mlp: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **more,
    }


SHAPES = {
    "0.5B, SmolVLM2": Shape(
        "smolvlm",
        {"model_type": "llama", **_sizes(960, 2560, 32, 15, num_key_value_heads=5, vocab_size=49280)},
        _sizes(768, 3072, 12, 12, image_size=512, patch_size=16),
        {"image_token_id": 300, "scale_factor": 4, "pad_token_id": 0},
    ),
    "3B, PaliGemma": Shape(
        "paligemma",
        {"model_type": "gemma", **_sizes(2048, 16384, 18, 8, num_key_value_heads=1, head_dim=256, vocab_size=257216)},
        {"model_type": "siglip_vision_model", "vision_use_head": False}
        | _sizes(1152, 4304, 27, 16, image_size=224, patch_size=14),
        {"image_token_index": 300},
    ),
    "7B, Llama 2 and CLIP-L": Shape(
        "llava",
        {"model_type": "llama", **_sizes(4096, 11008, 32, 32, num_key_value_heads=32, vocab_size=32064)},
        {"model_type": "clip_vision_model", **_sizes(1024, 4096, 24, 16, image_size=336, patch_size=14)},
        {"image_token_index": 300},
    ),
}


@dataclass(frozen=True)
class Activations:
    """Bytes of saved activations.

    Attributes:
        layers: Of all layers.
        inputs: Of the inputs of all layers.
        largest: Of the largest layer.
        copies: Of all bf16 copies of weights.
        largest_copy: Of the largest bf16 copy.
        outside: Outside the layers.
    """

    layers: int
    inputs: int
    largest: int
    copies: int
    largest_copy: int
    outside: int

    def total(self, method: str, checkpointing: bool) -> int:
        """The bytes of a step.

        FSDP gathers one layer at a time in bf16. Otherwise autocast keeps copies of trained weights for the complete
        forward pass, and copies of frozen weights for the recomputed layer.
        """
        if not checkpointing:
            return self.layers + (self.largest_copy if method == "fsdp" else self.copies) + self.outside
        again = self.largest + self.largest_copy
        return self.inputs + (max(self.copies, again) if method == "full" else again) + self.outside


def estimate(backbone: Any, rows: int, text: int, labels: int, lora: bool = False) -> Activations:
    """Estimates the activations of a batch; with `lora` the vision encoder is frozen and saves nothing."""
    config = backbone.model.config
    words, sight = config.get_text_config(), config.vision_config
    length = IMAGES * backbone.tokens_per_image + text
    tokens = rows * length
    patches = rows * IMAGES * ((sight.image_size // sight.patch_size) ** 2 + (backbone.family == "llava"))
    d, f = words.hidden_size, words.intermediate_size
    heads = words.num_attention_heads
    q = heads * (getattr(words, "head_dim", None) or d // heads)
    decoder = tokens * (18 * d + 8 * q + 4 * heads + 8 * f + 2 * length + (2 * q + 14 * RANK if lora else 8 * d))
    mlp = 6 if backbone.family == "llava" else 4
    vit = patches * (24 * sight.hidden_size + 4 * sight.num_attention_heads + mlp * sight.intermediate_size)
    vit = 0 if lora else vit
    layers = (decoder, words.num_hidden_layers), (vit, sight.num_hidden_layers)
    inputs = 4 * tokens * d * words.num_hidden_layers
    inputs += 0 if lora else 4 * patches * sight.hidden_size * sight.num_hidden_layers
    # Logits; pixels, and the final norms of vision encoder and language model.
    outside = rows * labels * words.vocab_size * 4
    if not lora:
        outside += 2 * rows * IMAGES * 3 * sight.image_size**2 + 6 * patches * sight.hidden_size + 8 * tokens * d
    weights = [2 * _matrices(block) for block in blocks(backbone)]
    output = 2 * backbone.model.get_output_embeddings().weight.numel()
    used = weights[-words.num_hidden_layers :] if lora else weights
    return Activations(
        sum(size * count for size, count in layers),
        inputs,
        max(decoder, vit),
        sum(used) + output,
        max(used) + output,
        outside,
    )


def _matrices(module: nn.Module) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


@contextmanager
def keeping(model: nn.Module) -> Iterator[dict[int, Tensor]]:
    """Collects the tensors that autograd saves, without the model's parameters, one per storage."""
    parameters, saved = {p.untyped_storage().data_ptr() for p in model.parameters()}, dict[int, Tensor]()

    def record(tensor: Tensor) -> Tensor:
        if (address := tensor.untyped_storage().data_ptr()) not in parameters:
            saved[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        yield saved


def size_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def measure(model: nn.Module, run: Callable[[], Tensor], checkpointing: bool) -> int:
    """The bytes that autograd saves in `run`; with checkpointing the inputs of layers and the largest layer."""
    inputs, layers = dict[int, Tensor](), [0]

    def observed(forward: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with keeping(model) as inner:
            out = forward(x, *args, **kwargs)
        if x.requires_grad:
            inputs[x.untyped_storage().data_ptr()] = x
        layers.append(size_of(inner.values()))
        return out

    watched: list[Any] = blocks(model) if checkpointing else []
    for block in watched:
        block.forward = partial(observed, block.forward)
    try:
        with keeping(model) as outer:
            run()
    finally:
        for block in watched:
            del block.forward
    return size_of((inputs | outer).values()) + max(layers)


def forward(backbone: Any, rows: int, text: int, labels: int) -> Tensor:
    """The loss of a batch of images and text with labels on the last `labels` tokens."""
    size = backbone.image_size
    pixels, mask = torch.randn(rows, IMAGES, 3, size, size), torch.ones(rows, IMAGES, dtype=torch.bool)
    image = IMAGES * backbone.tokens_per_image
    ids = torch.cat([torch.full((rows, image), backbone.image_token_id), torch.ones(rows, text, dtype=torch.long)], 1)
    segments = (torch.arange(ids.shape[1]) >= ids.shape[1] - labels).long().expand(ids.shape)
    with torch.autocast("cpu", torch.bfloat16):
        vision = backbone.encode_images(ImageInput(pixels, mask))
        embeds = backbone.embed(ids, vision)
        valid = torch.ones_like(ids, dtype=torch.bool)
        hidden, _ = backbone.forward(DecoderInput(embeds, valid, vision=vision, segments=segments))
        logits = backbone.logits(hidden[:, -labels:])
        return nn.functional.log_softmax(logits.float(), -1)[..., 0].mean()


def bench_memory(shapes: Mapping[str, Shape] = SHAPES) -> Table:
    """Estimates the memory of a training step per GPU [GiB], without allocating it.

    Full training, adapters, and FSDP over `RANKS`, with and without checkpointing. `check` is the ratio of the measured
    saved bytes to the formula, for a model of an eighth of the width with two layers; FSDP has that of full training.
    """
    rows: list[dict[str, Any]] = []
    checks = dict[tuple[bool, bool], float]()
    worst = 0.0
    for name, shape in shapes.items():
        for method in ("full", "lora", "fsdp"):
            lora = method == "lora"
            with torch.device("meta"):
                backbone = shape.backbone()
            if lora:
                inject(backbone, RANK, 2 * RANK, LANGUAGE)
            for checkpointing in (False, True):
                if method != "fsdp":
                    checks[lora, checkpointing] = _check(shape, lora, checkpointing)
                check = checks[lora, checkpointing]
                worst = max(worst, abs(check - 1))
                numbers = held(backbone, RANKS if method == "fsdp" else 1)
                activations = estimate(backbone, BATCH, TEXT, LABELS, lora).total(method, checkpointing)
                numbers |= {"activations": activations / GIB}
                total = {"total": sum(numbers.values()), "check": check}
                rows.append({"model": name, "way": method, "checkpointing": checkpointing} | numbers | total)
    return Table(rows, (Target("formula off by", worst, TOLERANCE, at_most=True),))


def _check(shape: Shape, lora: bool, checkpointing: bool) -> float:
    tiny = shape.backbone(NARROWER).train()
    if lora:
        inject(tiny, RANK, 2 * RANK, LANGUAGE)
    # Autocast's cached copies are not saved by autograd, so that the copies of each layer count separately.
    expected = estimate(tiny, 2, TEXT, LABELS, lora).total("lora", checkpointing)
    return measure(tiny, lambda: forward(tiny, 2, TEXT, LABELS), checkpointing) / expected


def held(backbone: nn.Module, ranks: int) -> dict[str, float]:
    """The memory of weights, gradients, moments and average per rank [GiB]."""
    parameters = list(backbone.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    every = sum(p.numel() for p in parameters)
    return {name: size * (every if name == "weights" else trained) / ranks / GIB for name, size in STATE.items()}

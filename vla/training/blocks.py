"""The repeated layers of a model: what is sharded, recomputed in the backward pass, and compiled, layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from vla.errors import InputError
from vla.models.action_heads.action_expert import ActionExpertLayer
from vla.models.backbones.cross_attention import CrossBlock
from vla.models.vla import VLA

KINDS = (GradientCheckpointingLayer, nn.TransformerEncoderLayer, CrossBlock, ActionExpertLayer)
"""The layers of transformers' models, of Qwen-VL's encoder, of Flamingo and of the flow head's expert."""


def blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of encoders and decoders, in the order of the model's modules, none inside another.

    An encoder whose library does not mark its layers (ConvNeXt, that of Llama 3.2) has none: it is not recomputed nor
    compiled, and is sharded with what stands around it.
    """
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, KINDS) and module not in inside:
            found.append(module)
            inside.update(module.modules())
    return found


def recompute_blocks(model: nn.Module) -> None:
    """In training, keeps of each block its inputs alone, and runs it again in the backward pass (Chen et al. 2016,
    arXiv 1604.06174).

    transformers' own checkpointing drops the cache of keys and values, which the flow head reads. Here the first run
    fills it, and the second a copy of what it was before.
    """
    for block in blocks(model):
        replaced: Any = block
        replaced.forward = partial(_run, block, block.forward)


def _run(block: nn.Module, forward: Callable[..., Any], *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
    def told(cache: Any) -> dict[str, Any]:
        return kwargs if cache is None else kwargs | {"past_key_values": cache}

    if not (block.training and torch.is_grad_enabled()):
        return forward(*args, **told(past_key_values))
    before, caches = _copied(past_key_values), [past_key_values]

    def once(*args: Any) -> Any:
        return forward(*args, **told(caches.pop() if caches else _copied(before)))

    return checkpoint(once, *args, use_reentrant=False)


def _copied(cache: Any) -> Any:
    """Its layers hold the same tensors, and take new ones by themselves."""
    if cache is None:
        return None
    held = copy.copy(cache)
    held.layers = [copy.copy(layer) for layer in cache.layers]
    return held


def compile_blocks(model: VLA) -> None:
    """Compiles what each block computes in training (regional compilation): layers of one kind share what is compiled.

    Names of weights stay, and hooks are not traced. Call it before `recompute_blocks`. Raises InputError for a head
    that reads the cache, into which each layer would be compiled anew.
    """
    head = model.processor.head
    if head is not None and head.continuous is not None and head.continuous.reads_cache:
        raise InputError(f"a {head.settings['kind']} head reads the cache of every layer: set plan.compile=false")
    for block in blocks(model):
        compiled: Any = block
        compiled.forward = partial(_in_training, block, block.forward, torch.compile(block.forward))


def _in_training(
    block: nn.Module, plain: Callable[..., Any], compiled: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Prompts of every length, and caches, come in evaluation."""
    return (compiled if block.training else plain)(*args, **kwargs)

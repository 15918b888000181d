"""Sharding, activation checkpointing and compilation of a model, per transformer block."""

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
"""The layers of transformers' models, of Qwen-VL's encoder, of Flamingo and of the flow head's action expert."""


def blocks(model: nn.Module) -> list[nn.Module]:
    """The outermost encoder and decoder layers, in the order of the model's modules.

    Encoders whose library does not mark their layers (ConvNeXt, the encoder of Llama 3.2) have none. They are neither
    checkpointed nor compiled, and are sharded together with the enclosing module.
    """
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, KINDS) and module not in inside:
            found.append(module)
            inside.update(module.modules())
    return found


def recompute_blocks(model: nn.Module) -> None:
    """Enables activation checkpointing of each block in training (Chen et al. 2016, arXiv 1604.06174).

    The checkpointing of transformers drops the KV cache, which the flow head reads. Here the forward pass fills the
    cache, and the recomputation fills a copy of its former state.
    """
    for block in blocks(model):
        patched: Any = block
        patched.forward = partial(_run, block, block.forward)


def _run(block: nn.Module, forward: Callable[..., Any], *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
    def with_cache(cache: Any) -> dict[str, Any]:
        return kwargs if cache is None else kwargs | {"past_key_values": cache}

    if not (block.training and torch.is_grad_enabled()):
        return forward(*args, **with_cache(past_key_values))
    before, caches = _copy_cache(past_key_values), [past_key_values]

    def run(*args: Any) -> Any:
        return forward(*args, **with_cache(caches.pop() if caches else _copy_cache(before)))

    return checkpoint(run, *args, use_reentrant=False)


def _copy_cache(cache: Any) -> Any:
    """A copy that shares the present tensors but grows independently."""
    if cache is None:
        return None
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


def compile_blocks(model: VLA) -> None:
    """Compiles the training forward pass of each block (regional compilation); equal layers share the compiled code.

    Weight names do not change, and hooks are not traced. Call it before `recompute_blocks`.

    Raises:
        InputError: the head reads the KV cache, so that every layer would be compiled separately.
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
    """Uses the compiled code only in training: evaluation has prompts of many lengths, and a cache."""
    return (compiled if block.training else plain)(*args, **kwargs)

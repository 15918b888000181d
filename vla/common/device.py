"""The device on which models run, and what it computes natively."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def accelerator() -> torch.device:
    """The GPU, or the CPU if there is none; for ranks of distributed training see `vla.training.distributed`."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies matrices in bfloat16; emulated, they take some ten times as long as in float32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))

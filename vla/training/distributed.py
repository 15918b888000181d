"""Training in one process, or on several ranks with sharded weights (FSDP2: Zhao et al. 2023, arXiv 2304.11277).

`torchrun --nproc-per-node N -m vla train …` starts N ranks. Each holds a shard of every weight, its gradient, optimizer
moments and average. The weights of a block are gathered only while it computes.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from vla.models.vla import VLA


@dataclass(frozen=True)
class DistributedContext:
    """The device, the rank of this process, and the number of ranks."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that prints and writes files."""
        return self.rank == 0

    def sum(self, values: Iterable[float]) -> list[float]:
        """Sums each number over the ranks. All ranks must call it."""
        if self.size == 1:
            return list(values)
        totals = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        dist.all_reduce(totals)
        return totals.tolist()

    def barrier(self) -> None:
        self.sum([0.0])

    def shard(self, model: VLA, bf16: bool) -> None:
        """Moves the model to the device and shards its fp32 weights over the ranks.

        With `bf16` on a GPU, the weights of blocks are gathered in bfloat16, in which they compute.
        """
        if self.size == 1:
            model.to(self.device)
            return
        # Imported here because they take seconds, and data loader processes do not need them.
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        from vla.training.blocks import blocks

        mesh = init_device_mesh(self.device.type, (self.size,))
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        full_precision = MixedPrecisionPolicy(cast_forward_inputs=False)
        for block in blocks(model):
            fully_shard(block, mesh=mesh, mp_policy=policy if bf16 and self.device.type == "cuda" else full_precision)
        # The weights outside the blocks are small, and autocast may use any of them in fp32.
        fully_shard(model, mesh=mesh, mp_policy=full_precision, reshard_after_forward=True)
        modules: Sequence[Any] = (*blocks(model), model)
        for module in modules:  # weights first gathered in inference mode could not be trained
            module.unshard()
            module.reshard()
        for name in ("generate_text", "generate_actions"):
            register_fsdp_forward_method(model, name)


def join() -> DistributedContext:
    """The context that torchrun started this process with, or that of a single process; on a GPU if available.

    The process group is created once and destroyed at exit: a second rendezvous at the same address would race with the
    first.
    """
    local, rank, size = (int(os.environ.get(k, d)) for k, d in (("LOCAL_RANK", 0), ("RANK", 0), ("WORLD_SIZE", 1)))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return DistributedContext(device, rank, size)


def full_tensor(tensor: Tensor) -> Tensor:
    """Gathers a tensor that is sharded over the ranks. All ranks must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def full_weights(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """Gathers the model's weights and saved buffers on the CPU; empty on ranks without `keep`."""
    # Tied weights have only their first name.
    named: Sequence[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    saved = model.state_dict().keys()
    weights = ((name, full_tensor(tensor.detach())) for name, tensor in named if name in saved)
    return {name: tensor.cpu() for name, tensor in weights if keep}

"""One process, or several ranks that share one model (FSDP2: Zhao et al. 2023, arXiv 2304.11277).

`torchrun --nproc-per-node N -m vla train …` starts N ranks. Each holds a slice of every weight, of its gradient,
moments and average; a block's weights are whole only while it computes.
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
    """The ranks that train together, and which of them this is."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that prints and writes what there is one of."""
        return self.rank == 0

    def sum(self, values: Iterable[float]) -> list[float]:
        """Each number, added up over the ranks, which must all call this."""
        if self.size == 1:
            return list(values)
        told = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        dist.all_reduce(told)
        return told.tolist()

    def barrier(self) -> None:
        self.sum([0.0])

    def shard(self, model: VLA, bf16: bool) -> None:
        """Puts the model on the device; its weights are split over the ranks, each as fp32. `bf16`: blocks compute in
        it, and so are gathered in it, where that is a GPU."""
        if self.size == 1:
            model.to(self.device)
            return
        # Here, since they take seconds to import, and a process that makes batches needs none of them.
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        from vla.training.blocks import blocks

        mesh = init_device_mesh(self.device.type, (self.size,))
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        whole = MixedPrecisionPolicy(cast_forward_inputs=False)
        for block in blocks(model):
            fully_shard(block, mesh=mesh, mp_policy=policy if bf16 and self.device.type == "cuda" else whole)
        # What is outside the blocks is small, and autocast may meet any of it in fp32.
        fully_shard(model, mesh=mesh, mp_policy=whole, reshard_after_forward=True)
        modules: Sequence[Any] = (*blocks(model), model)
        for module in modules:  # what is gathered first in inference mode could not be trained
            module.unshard()
            module.reshard()
        for name in ("generate_text", "generate_actions"):
            register_fsdp_forward_method(model, name)


def join() -> DistributedContext:
    """The world that torchrun started this process in, or one process alone: on its GPU, where there is one.

    A process joins once, and leaves when it ends: a second rendezvous at the same address would race with the first.
    """
    local, rank, size = (int(os.environ.get(k, d)) for k, d in (("LOCAL_RANK", 0), ("RANK", 0), ("WORLD_SIZE", 1)))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return DistributedContext(device, rank, size)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that is split over the ranks, which must all call this."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def full_weights(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """The model's weights and saved buffers, whole and on the CPU; empty where they are not to be kept."""
    # Of weights that are tied, the first name stands for all.
    named: Sequence[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    saved = model.state_dict().keys()
    weights = ((name, whole(tensor.detach())) for name, tensor in named if name in saved)
    return {name: tensor.cpu() for name, tensor in weights if keep}

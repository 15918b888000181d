"""One optimizer step: the gradient of a batch over its micro-batches and ranks, and the update."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields

import torch
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from vla.common.device import native_bf16
from vla.errors import InputError
from vla.models.batch import Batch
from vla.training.augment import augment
from vla.training.balance import count, element_weights, numbered
from vla.training.batches import SPARE
from vla.training.distributed import DistributedContext
from vla.training.optimizer import clip_gradients
from vla.training.state import TrainState
from vla.training.state_dropout import without_states
from vla.training.train_config import TrainConfig


@dataclass(frozen=True)
class Total:
    """The loss of one source in a step.

    Attributes:
        losses: The sum of the losses of its elements.
        elements: The number of its elements.
        part: Its share of the step's weighted loss.
    """

    losses: float
    elements: int
    part: float


Totals = Mapping[str, Total]


class Diverged(InputError):
    """The loss or its gradient is not finite. The message has the file of the saved batch."""


def run_step(state: TrainState, micro: Sequence[Batch]) -> Totals:
    """Takes one step. Raises Diverged, without changing weights, if the loss or gradient is not finite."""
    state.optimizer.zero_grad()
    totals = backward(state, micro)
    norm = clip_gradients(state.model, state.plan.clip, state.plan.clip_parts)
    if not math.isfinite(norm + sum(total.losses for total in totals.values())):
        raise Diverged(_save_batch(state, micro))
    state.update()
    tokens = Counter(state.progress.tokens) + Counter({source: total.elements for source, total in totals.items()})
    state.progress.tokens = dict(tokens)
    return totals


def backward(state: TrainState, micro: Sequence[Batch], only: Collection[str] | None = None) -> Totals:
    """Accumulates the gradient of the step's loss, or of its part from the sources `only`."""
    model, plan, world, sources = state.model, state.plan, state.world, state.sources
    # Dropout depends only on the seed, the step and the rank: there is no random state to save.
    torch.manual_seed(((plan.seed * 1_000_003 + state.progress.step) * 65_537 + world.rank) % 2**63)
    number = numbered(sources)
    rows_of = [torch.tensor([number[s] for s in b.source], device=world.device) for b in micro]
    seeds = [b.seed for b in micro]
    micro = [without_states(b, plan.state_dropout).to(world.device) for b in micro]
    # Counted over the full batch, so that micro-batches with few tokens do not weigh more.
    per_batch = [
        count(row_sources, *model.elements(b), len(number)) for b, row_sources in zip(micro, rows_of, strict=True)
    ]
    local = torch.stack(per_batch).sum(0)
    counts = torch.tensor(world.sum(local.flatten().tolist()), dtype=torch.float64, device="cpu").view_as(local)
    weights = element_weights(counts, sources, plan.loss_weights).to(world.device)
    selected = torch.tensor([only is None or s in only for s in number], device=world.device)
    sums = torch.zeros(2, len(number), dtype=torch.float64, device=world.device)
    for batch, row_sources, seed in zip(micro, rows_of, seeds, strict=True):
        pixels, batch = model.processor.placed(batch)
        pixels = augment(pixels, batch, seed, plan.augmentation)
        with computing(plan, world):
            losses, rows, kinds = model(batch, pixels)
        source = row_sources[rows]
        weighted = losses * weights[source, kinds].to(losses.dtype)
        # FSDP averages the gradients of the ranks; the loss needs their sum.
        ((weighted * selected[source]).sum() * world.size).backward()
        for row, values in enumerate((losses, weighted)):
            sums[row] += torch.bincount(source, values.detach().double(), len(number))
    totals = torch.tensor(world.sum(sums.flatten().tolist()), dtype=torch.float64, device="cpu").view_as(sums)
    shares = totals[1] / totals[1].sum().clamp(min=1e-12)
    elements = counts[:, 1:].sum(1)
    return {
        s: Total(float(totals[0, i]), int(elements[i]), float(shares[i])) for i, s in enumerate(sources) if elements[i]
    }


def attention(device: torch.device, bf16: bool) -> AbstractContextManager[None]:
    """Avoids the CPU's fused attention kernel in bfloat16, whose backward pass is slow."""
    return sdpa_kernel(SDPBackend.MATH) if bf16 and device.type == "cpu" else nullcontext()


@contextmanager
def computing(plan: TrainConfig, world: DistributedContext) -> Iterator[None]:
    """A context that computes in the plan's precision."""
    bf16 = uses_bf16(plan.precision, world.device)
    with torch.autocast(world.device.type, torch.bfloat16, enabled=bf16), attention(world.device, bf16):
        yield


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16; "auto" requires native support, since emulation is slow."""
    return native_bf16(device) if precision == "auto" else precision == "bf16"


def _save_batch(state: TrainState, micro: Sequence[Batch]) -> str:
    """Saves this rank's micro-batches of the step as `<number>/<field>`; returns the error message."""
    step, rank = state.progress.step, state.world.rank
    path = state.run / f"nan-step-{step:08d}{f'-rank{rank}' if rank else ''}.safetensors"
    names = [f.name for f in fields(Batch) if f.name != "source"]
    save_file({f"{i}/{name}": getattr(b, name).contiguous() for i, b in enumerate(micro) for name in names}, path)
    sources = sorted({source for batch in micro for source in batch.source} - {SPARE})
    return (
        f"the loss is not a number at step {step}, nothing was overwritten: the batch is in {path} "
        f"(sources {sources}); lower lr, or look for bad values in the data"
    )

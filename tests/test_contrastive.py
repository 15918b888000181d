"""Contrastive losses: the formulas written out, in chunks, and over two ranks."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from vla.training.contrastive.losses import sigmoid_loss, softmax_loss

PAIRS, WIDTH = 6, 5
LOSSES: dict[str, Callable[..., Tensor]] = {
    "clip": lambda i, t, scale, bias, chunk=None: softmax_loss(i, t, scale, chunk=chunk),
    "align": lambda i, t, scale, bias, chunk=None: softmax_loss(i, t, scale, 0.1, chunk),
    "siglip": lambda i, t, scale, bias, chunk=None: sigmoid_loss(i, t, scale, bias, chunk),
}


def leaves(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(2, PAIRS, WIDTH, generator=generator, dtype=torch.float64)
    values = {"images": draws[0], "texts": draws[1], "scale": torch.tensor(1 / 0.07), "bias": torch.tensor(-10.0)}
    return {name: value.double().requires_grad_() for name, value in values.items()}


def loss_of(name: str, given: dict[str, Tensor], rows: slice = slice(None), chunk: int | None = None) -> Tensor:
    images, texts = (normalize(given[n], dim=-1)[rows] for n in ("images", "texts"))
    return LOSSES[name](images, texts, given["scale"], given["bias"], chunk)


def gradients(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.grad if value.grad is not None else torch.zeros_like(value) for name, value in given.items()}


def written_out(name: str, given: dict[str, Tensor]) -> float:
    """The papers' sums, one pair after the other."""
    images, texts = (normalize(given[n], dim=-1).tolist() for n in ("images", "texts"))
    scale, bias = given["scale"].item(), given["bias"].item()
    z = [[scale * math.sumprod(i, t) for t in texts] for i in images]
    if name == "siglip":
        every = [(1 if i == j else -1) * (z[i][j] + bias) for i in range(PAIRS) for j in range(PAIRS)]
        return sum(math.log1p(math.exp(-value)) for value in every) / PAIRS
    smooth, total = 0.1 if name == "align" else 0.0, 0.0
    for rows in (z, [list(column) for column in zip(*z, strict=True)]):
        for i, row in enumerate(rows):
            whole = math.log(sum(map(math.exp, row)))
            total += whole - (1 - smooth) * row[i] - smooth * sum(row) / PAIRS
    return total / (2 * PAIRS)


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_the_papers(name: str) -> None:
    values = leaves()
    assert loss_of(name, values).item() == pytest.approx(written_out(name, values), rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
@given(chunk=st.integers(1, PAIRS + 2), seed=st.integers(0, 99))
def test_chunks_have_the_loss_and_the_gradients_of_the_whole(name: str, chunk: int, seed: int) -> None:
    whole, parts = leaves(seed), leaves(seed)
    full, chunked = loss_of(name, whole), loss_of(name, parts, chunk=chunk)
    full.backward()
    chunked.backward()
    torch.testing.assert_close(chunked, full)
    torch.testing.assert_close(gradients(parts), gradients(whole))


@given(seed=st.integers(0, 99))
def test_the_order_of_the_pairs_is_nothing(seed: int) -> None:
    values, order = leaves(seed), torch.randperm(PAIRS, generator=torch.Generator().manual_seed(seed))
    mixed = values | {n: values[n].detach()[order] for n in ("images", "texts")}
    for name in LOSSES:
        torch.testing.assert_close(loss_of(name, mixed), loss_of(name, values))


def main(folder: Path) -> None:
    """What each of the two ranks does: its half of the pairs, and gradients as data-parallel training takes them."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank, half, found = dist.get_rank(), PAIRS // 2, {}
    for name in LOSSES:
        for chunk in (None, 2):
            values = leaves()
            loss = loss_of(name, values, slice(rank * half, (rank + 1) * half), chunk)
            loss.backward()
            for key, value in ({"loss": loss.detach()} | gradients(values)).items():
                dist.all_reduce(value)
                found[f"{name}/{chunk}/{key}"] = value / 2
    if rank == 0:
        save_file({k: v.contiguous() for k, v in found.items()}, folder / "found.safetensors")
    dist.destroy_process_group()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads may still drop a tensor while the interpreter ends, which aborts (pytorch #190489)


@pytest.mark.slow
def test_two_ranks_have_the_loss_and_the_gradients_of_one(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    ranks: list[Any] = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, str(tmp_path)],
            env=os.environ | told | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        assert rank.communicate(timeout=120)[1] == "" and rank.returncode == 0
    found = load_file(tmp_path / "found.safetensors")
    for name in LOSSES:
        values = leaves()
        loss = loss_of(name, values)
        loss.backward()
        for key, value in ({"loss": loss.detach()} | gradients(values)).items():
            for chunk in (None, 2):
                torch.testing.assert_close(found[f"{name}/{chunk}/{key}"], value)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

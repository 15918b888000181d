"""Tensors that say they are on CUDA and are computed on the CPU, to see without a GPU that none lies elsewhere.

What mixes devices raises, as it does on a GPU. Streams, graphs and autograd's backward pass are not there: a graph's
replay is its function called again, its output written over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from vla.models.engine import graphs

COPIES = ("aten::to", "aten::_to_copy", "aten::copy_")
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
"""A tensor on CUDA may be indexed by one that is not."""


class OnCuda(Tensor):
    elem: Tensor

    @staticmethod
    def __new__(cls, elem: Tensor) -> OnCuda:
        made: Any = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, elem.size(), strides=elem.stride(), dtype=elem.dtype, device=torch.device("cuda", 0)
        )
        made.elem = elem
        return made

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnCuda({self.elem})"

    def tolist(self) -> Any:
        return self.elem.tolist()

    def pin_memory(self, *_: Any) -> Any:
        raise RuntimeError("only what is on the CPU can be pinned")


class _NoDevice(fake_tensor.FakeTensorMode):
    """Lets torch name a device that is not there."""

    avoid_device_init = True


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})


def _run(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, leaves = op._schema.name, tree_leaves((args, kwargs))
    there = [x for x in leaves if isinstance(x, OnCuda)]
    here = [tuple(x.shape) for x in leaves if isinstance(x, Tensor) and not isinstance(x, OnCuda) and x.dim()]
    may_mix = name in COPIES or (name in INDEXED and isinstance(args[0], OnCuda))
    if there and here and not may_mix:
        raise RuntimeError(f"{name}: all tensors should be on one device, but of shapes {here} are on the CPU")
    named = [x.type for x in leaves if isinstance(x, torch.device)]
    goes_there = named[0] == "cuda" if named else isinstance(args[0], OnCuda) if name in COPIES else bool(there)
    plain_args, plain_kwargs = tree_map(_here, (args, kwargs))
    with fake_tensor.unset_fake_temporarily():
        out = op(*plain_args, **plain_kwargs)
    if not goes_there or name == "aten::_local_scalar_dense":
        return out
    known = {id(x.elem): x for x in there}  # what an operation changes in place stays the same object

    def moved(x: Any) -> Any:
        return known[id(x)] if id(x) in known else OnCuda(x) if isinstance(x, Tensor) else x

    return tree_map(moved, out)


def _here(x: Any) -> Any:
    return torch.device("cpu") if isinstance(x, torch.device) else x.elem if isinstance(x, OnCuda) else x


class _Replay:
    def __init__(self, function: Callable[..., Any], inputs: list[Tensor], output: Any) -> None:
        self._function, self._inputs, self._output = function, inputs, output

    def replay(self) -> None:
        for mine, new in zip(tree_leaves(self._output), tree_leaves(self._function(*self._inputs)), strict=True):
            if isinstance(mine, Tensor) and mine is not new:
                mine.copy_(new)


def _capture(function: Callable[..., Any], inputs: tuple[Tensor, ...], pool: Any) -> graphs.Captured:
    held = [x.clone() for x in inputs]
    captured = object.__new__(graphs.Captured)
    captured.inputs, captured.output = held, function(*held)
    captured.graph = _Replay(function, held, captured.output)  # type: ignore[assignment]
    return captured


@contextmanager
def fake_cuda(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, `.to("cuda")` and whatever asks for that device find one."""
    patch.setattr(graphs, "_capture", _capture)
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    patch.setattr(torch.cuda, "synchronize", lambda *_: None)
    patch.setattr(Tensor, "pin_memory", lambda self, *_: self)
    # What was made in inference mode can be no part of a tensor of our own.
    patch.setattr(torch.inference_mode, "__enter__", lambda self: None)
    patch.setattr(torch.inference_mode, "__exit__", lambda self, *_: None)
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _NoDevice(), _Mode(), torch.no_grad():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)

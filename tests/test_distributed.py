"""Two ranks on this machine against one process: the same step, the same evaluation, each other's checkpoints."""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from vla.datasets.mixture import Mixture
from vla.errors import InputError
from vla.evaluation.heldout import action_error, vqa_accuracy
from vla.models.vla import VLA
from vla.training import checkpoint
from vla.training.cotrain import train
from vla.training.train_config import TrainConfig
from vla.types import Example

HERE = Path(__file__).parent
Models = Callable[..., VLA]


class Memory(list[Example]):
    def example(self, index: int, rng: np.random.Generator) -> Example:
        return self[index]


def example(row: int, target: Any, *cameras: str, **fields: Any) -> Example:
    rng = np.random.default_rng(row)
    views = {camera: rng.integers(0, 256, (32, 32, 3), np.uint8) for camera in cameras}
    return Example(views, "what color is the cube?" if isinstance(target, str) else "lift", target, **fields)


def mixture() -> Mixture:
    rng = np.random.default_rng(0)
    actions, states = rng.uniform([-1, -1, 0], 1, (3, 4, 3)), rng.uniform(-1, 1, (3, 2))
    robot = Memory(
        example(i, a, "front", "wrist", state=s) for i, (a, s) in enumerate(zip(actions, states, strict=True))
    )
    words = Memory([example(3, "red"), example(4, "blue red blue red")])  # no image: some ranks have none in a batch
    seen = Memory([example(5, "blue", "front")])
    return Mixture({"robot": robot, "words": words, "seen": seen}, {"robot": 2.0, "words": 1.0, "seen": 1.0}, 0)


def plan(**fields: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "batch_size": 8,
        "accumulate": 2,
        "augment": 0.2,
        "warmup": 2,
        "precision": "fp32",
    }
    return TrainConfig(**(values | fields))


def evaluate(model: VLA) -> dict[str, float]:
    sources = mixture()._sources
    robot, seen = sources["robot"], sources["seen"]
    assert isinstance(robot, Memory) and isinstance(seen, Memory)
    return {"action_error": action_error(model, robot), "vqa": vqa_accuracy(model, {"color": seen})["color"]}


def stop(model: VLA) -> dict[str, float]:
    if int(os.environ.get("RANK", 1)) == 1:  # of two, one alone
        signal.raise_signal(signal.SIGTERM)
    return evaluate(model)


CASES = {
    "adamw": {"optimizer": "adamw", "checkpointing": True, "lr_multipliers": {"language": 0.5}, "clip_parts": True}
    | {"state_dropout": 0.5},
    "muon": {"optimizer": "muon", "loss_weights": {"robot": 0.5}},
}


def main(run: Path) -> None:
    """What each of the two ranks does."""
    torch.set_num_threads(1)
    tiny_model = runpy.run_path(str(HERE / "conftest.py"))["tiny_model"]
    for name, case in CASES.items():
        train(tiny_model(head="flow"), mixture(), plan(steps=1, **case), run / name / "two", evaluate)
    cut = train(tiny_model(), mixture(), two_steps(), run / "two-then-one", stop)
    assert (cut.step, cut.finished) == (1, False)
    assert train(tiny_model(seed=5), mixture(), two_steps(), run / "one-then-two", evaluate).finished


def two_steps() -> TrainConfig:
    return plan(steps=2, evaluate_every=1, lr=1e-4, ema=0.9, freeze=("connector",))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, make_model: Models) -> Path:
    """Where two ranks trained, after one process had begun `one-then-two`."""
    folder = tmp_path_factory.mktemp("ranks")
    train(make_model(), mixture(), two_steps(), folder / "one-then-two", stop)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", __file__, str(folder)]
    done = subprocess.run(command, env=os.environ | told, capture_output=True, text=True, timeout=150)
    silent = (folder / "rank1.txt").read_text()
    assert done.returncode == 0, done.stderr + silent
    assert "train" in done.stderr and not silent  # the first rank alone speaks
    return folder


def state(found: Path) -> dict[str, torch.Tensor]:
    """The whole tensors of a checkpoint, whoever wrote it: slices lie along the first axis."""
    parts: dict[str, list[torch.Tensor]] = {}
    files = sorted((found / "training").iterdir())
    assert {file.suffix for file in files} == {".safetensors"}
    for file in files:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                parts.setdefault(name, []).append(opened.get_tensor(name))
    return {name: torch.cat(p) if p[0].ndim else p[0] for name, p in parts.items()}


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], atol: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", CASES)
def test_a_step_of_two_ranks_is_that_of_one_process(make_model: Models, run: Path, name: str) -> None:
    alone = train(make_model(head="flow"), mixture(), plan(steps=1, **CASES[name]), run / name / "one", evaluate)
    one, two = (run / name / ranks / "step-00000001" for ranks in ("one", "two"))
    assert len(list((two / "training").iterdir())) == 2
    # Muon's update may be computed in bfloat16, in which sums of another order round to a tenth of the learning rate.
    atol = 1e-4 if name == "muon" else 1e-5
    assert_close(state(two), state(one), atol)
    assert_close(VLA.load(two).state_dict(), VLA.load(one).state_dict(), atol)
    together = checkpoint.json.loads((two / "training.json").read_text())["evaluations"]
    assert together == [pytest.approx(e, rel=1e-4) for e in alone.evaluations]


def test_a_checkpoint_serves_any_number_of_ranks(make_model: Models, run: Path, tmp_path: Path) -> None:
    train(make_model(), mixture(), two_steps(), tmp_path, evaluate)
    assert checkpoint.latest(run / "two-then-one") == run / "two-then-one/step-00000001"
    train(make_model(seed=4), mixture(), two_steps(), run / "two-then-one", evaluate)
    for name in ("two-then-one", "one-then-two"):
        assert_close(state(run / name / "step-00000002"), state(tmp_path / "step-00000002"))


def test_a_batch_that_does_not_split_over_the_ranks_is_refused() -> None:
    with pytest.raises(InputError, match="batch_size 8 is not a multiple of accumulate 2 x 3 ranks"):
        plan(steps=1).rows(3)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    second = os.fork()  # after the imports, which take longer than all the rest
    os.environ["RANK"] = "0" if second else "1"
    if not second:
        file = os.open(folder / "rank1.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
    main(folder)
    if second:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(second, 0)[1]))

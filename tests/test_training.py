from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vla.datasets.mixture import Mixture
from vla.errors import InputError
from vla.evaluation.heldout import spread
from vla.models.vla import VLA
from vla.policies.vla import VlaPolicy
from vla.training import checkpoint
from vla.training.augment import change_light
from vla.training.cotrain import train
from vla.training.distributed import DistributedContext
from vla.training.heldout_scores import HeldoutScores
from vla.training.state import Progress, TrainState
from vla.training.step import Diverged
from vla.training.train_config import TrainConfig
from vla.types import Example, Observation

Models = Callable[..., VLA]


class Memory(list[Example]):
    """Examples held in memory, as a source of a mixture."""

    def example(self, index: int, rng: np.random.Generator) -> Example:
        return self[index]


def demonstrations() -> Memory:
    rng = np.random.default_rng(0)
    return Memory(
        Example(
            {camera: rng.integers(0, 256, (32, 32, 3), np.uint8) for camera in ("front", "wrist")},
            f"lift the {word} ring",
            rng.uniform([-1, -1, 0], 1, (4, 3)),
            rng.uniform(-1, 1, 2),
            np.array([True, True, True, word != "blue"]),
        )
        for word in ("red", "blue", "big")
    )


def questions(images: bool = True) -> Memory:
    rng = np.random.default_rng(1)
    views = [{"front": rng.integers(0, 256, (32, 32, 3), np.uint8)} if images else {} for _ in range(2)]
    return Memory(
        Example(view, "what color is the cube?", answer) for view, answer in zip(views, ("red", "blue"), strict=True)
    )


def mixture(seed: int = 0) -> Mixture:
    return Mixture({"robot": demonstrations(), "vqa": questions()}, {"robot": 1.0, "vqa": 1.0}, seed)


def plan(**fields: Any) -> TrainConfig:
    values: dict[str, Any] = {"batch_size": 4, "augment": 0.0, "warmup": 2, "precision": "fp32", "gradient_report": 0}
    return TrainConfig(**(values | fields))


ALONE = DistributedContext(torch.device("cpu"))
AUGMENT = {"brightness": 0.2, "shift": 0.1, "rotation": 5.0, "noise": 0.1, "blur": 0.5, "cutout": 0.2}


def saved_state(found: Path) -> dict[str, torch.Tensor]:
    """What a resumed run needs; of one process, in one file."""
    (file,) = (found / "training").iterdir()
    return load_file(file)


def equal_states(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_one_batch_is_overfitted(make_model: Models, tmp_path: Path) -> None:
    model = make_model(smoothing=0.0)
    outcome = train(model, mixture(), plan(steps=120, batch_size=8, lr=5e-3, ema=0.8, warmup=10), tmp_path)
    assert outcome.finished
    model.eval()
    with torch.no_grad():
        losses, _, _ = model(model.processor.batch([*demonstrations(), *questions()]))
    assert float(losses.mean()) < 0.1
    robot = model.processor.robot()
    for example in demonstrations():
        assert example.state is not None
        chunk = VlaPolicy(model).predict(Observation(example.images, example.state, example.prompt, 0.0))
        assert chunk is not None
        error = np.abs(chunk.actions - example.target)[example.mask]
        assert (error <= robot.bins.width * np.array([1, 1, 0.5])).all()
    prompts = model.processor.question_prompt([q.prompt for q in questions()], [q.images for q in questions()])
    assert model.generate_text(prompts) == ["red", "blue"]


def test_accumulation_equals_the_large_batch(make_model: Models, tmp_path: Path) -> None:
    moments = []
    for accumulate in (1, 2, 4):
        run = tmp_path / str(accumulate)
        # The first micro-batches are demonstrations of 12 tokens, the last ones answers of 2.
        one_step = plan(steps=1, accumulate=accumulate, augment=AUGMENT, clip=1e9, loss_weights={"vqa": 3.0})
        train(make_model(), mixture(), one_step, run)
        found = checkpoint.latest(run)
        assert found is not None
        # After one step the first moments are the gradients, but for a factor.
        saved = saved_state(found)
        moments.append({k: v for k, v in saved.items() if k.endswith(("exp_avg", "momentum_buffer"))})
    assert max(float(m.abs().max()) for m in moments[0].values()) > 1e-3
    for split in moments[1:]:
        for name, moment in moments[0].items():
            torch.testing.assert_close(split[name], moment, rtol=1e-3, atol=1e-6)


def test_a_resumed_run_equals_a_straight_one_to_the_bit(make_model: Models, tmp_path: Path) -> None:
    six_steps = plan(steps=6, evaluate_every=3, accumulate=2, augment=AUGMENT, ema=0.9)
    straight = train(make_model(seed=1), mixture(), six_steps, tmp_path / "a", lambda _: {"vqa": 0.5})

    def stop(model: VLA) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return {"vqa": 0.5}

    cut = train(make_model(seed=1), mixture(), six_steps, tmp_path / "b", stop)
    assert (cut.step, cut.finished) == (3, False)
    # Whatever the new process starts from, the checkpoint decides.
    resumed_model = make_model(seed=2)
    resumed = train(resumed_model, mixture(), six_steps, tmp_path / "b", lambda _: {"vqa": 0.5})
    assert resumed.finished
    assert resumed.evaluations == straight.evaluations
    equal_states(*(saved_state(tmp_path / run / "step-00000006") for run in ("a", "b")))
    weights, resumed_weights = (load_file(tmp_path / run / "step-00000006/model.safetensors") for run in ("a", "b"))
    equal_states(weights, resumed_weights)
    for name, value in resumed_model.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_a_run_that_is_done_stays_as_it_is(make_model: Models, tmp_path: Path) -> None:
    first = train(make_model(), mixture(), plan(steps=2), tmp_path)
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.glob("step-*/*"))
    again = train(make_model(seed=3), mixture(), plan(steps=2), tmp_path)
    assert again == first
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.glob("step-*/*")) == before


CHILD = """
import runpy, sys
from pathlib import Path
tests, run = map(Path, sys.argv[1:])
tiny_model = runpy.run_path(str(tests / "conftest.py"))["tiny_model"]
here = runpy.run_path(str(tests / "test_training.py"))

def evaluate(model):
    print("evaluated", flush=True)
    return {}

outcome = here["train"](tiny_model(), here["mixture"](), here["plan"](steps=10**6, evaluate_every=3), run, evaluate)
assert not outcome.finished
"""


def test_sigterm_leaves_a_checkpoint_and_exits_zero(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as child:
        assert child.stdout is not None
        lines = itertools.takewhile(lambda line: line.strip() != "evaluated", child.stdout)
        list(lines)
        child.terminate()
        _, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert not (tmp_path / ".partial").exists()
    VLA.load(found)


def test_an_interrupt_leaves_a_checkpoint_and_is_passed_on(
    make_model: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = make_model(), itertools.count(1)
    forward = model.forward

    def interrupted(batch: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if next(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return forward(batch, pixels)

    monkeypatch.setattr(model, "forward", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(model, mixture(), plan(steps=9, evaluate_every=2), tmp_path)
    # The step in progress was finished, and saved although none was due.
    assert checkpoint.latest(tmp_path) == tmp_path / "step-00000003"
    assert signal.getsignal(signal.SIGINT) == before


def poisoned_loss(losses: torch.Tensor) -> torch.Tensor:
    return losses * float("nan")


def poisoned_gradient(losses: torch.Tensor) -> torch.Tensor:
    # The square root is 0 here and its slope infinite.
    return losses + (losses - losses.detach()).clamp(min=0).sqrt()


@pytest.mark.parametrize("poison", [poisoned_loss, poisoned_gradient])
def test_divergence_names_the_saved_batch_and_overwrites_nothing(
    make_model: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poison: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    model, calls = make_model(), itertools.count(1)
    forward = model.forward

    def diverging(batch: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        losses, *rest = forward(batch, pixels)
        return (poison(losses) if next(calls) == 3 else losses), *rest

    monkeypatch.setattr(model, "forward", diverging)
    with pytest.raises(Diverged, match="nan-step-00000002.safetensors"):
        train(model, mixture(), plan(steps=9, evaluate_every=1), tmp_path)
    saved = load_file(tmp_path / "nan-step-00000002.safetensors")
    batch = model.processor.batch(mixture().batch(2, 4))
    assert torch.equal(saved["0/input_ids"], batch.input_ids)
    assert torch.equal(saved["0/images"], batch.images)
    assert checkpoint.latest(tmp_path) == tmp_path / "step-00000002"
    weights = VLA.load(tmp_path / "step-00000002").state_dict()
    assert all(bool(w.isfinite().all()) for w in weights.values())


@pytest.mark.parametrize("broken", ["save_file", "replace", "rmtree"])
def test_a_kill_while_saving_leaves_the_previous_checkpoint(
    make_model: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    model = make_model()
    state = TrainState(model, plan(steps=3), tmp_path, [], ALONE, Progress(1))
    checkpoint.save(state)
    state.progress = Progress(2)

    def killed(*_: Any, **__: Any) -> None:
        raise SystemExit("killed")

    with monkeypatch.context() as patch:
        if broken == "save_file":  # while the weights are written, after the training state
            patch.setattr("vla.models.vla.save_file", killed)
        elif broken == "replace":
            patch.setattr(os, "replace", killed)
        else:  # while the old checkpoint is dropped: the new one is there
            rmtree = shutil.rmtree
            patch.setattr(shutil, "rmtree", lambda path, **kw: rmtree(path, **kw) if kw else killed())
        with pytest.raises(SystemExit):
            checkpoint.save(state)
    expected = 2 if broken == "rmtree" else 1
    found = checkpoint.latest(tmp_path)
    assert found == tmp_path / f"step-{expected:08d}"
    VLA.load(found)
    resumed = TrainState(make_model(), plan(steps=3), tmp_path, [], ALONE, Progress())
    checkpoint.restore(resumed, found)
    assert resumed.progress.step == expected
    state.progress = Progress(3)
    checkpoint.save(state)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000003"]


def test_the_best_checkpoint_outlives_later_ones(make_model: Models, tmp_path: Path) -> None:
    scores = iter([{"vqa": 0.9, "action_error": 0.2}, {"vqa": 0.9, "action_error": 0.1}, {"vqa": 0.4}, {"vqa": 0.5}])
    outcome = train(make_model(), mixture(), plan(steps=4, evaluate_every=1), tmp_path, lambda _: next(scores))
    assert outcome.best == tmp_path / "step-00000002"
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000002", "step-00000004"]
    VLA.load(tmp_path / "best")


def test_evaluation_sees_the_average_in_evaluation_mode(make_model: Models, tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def evaluate(model: VLA) -> dict[str, float]:
        assert not model.training
        seen.append({n: p.detach().clone() for n, p in model.named_parameters()})
        return {}

    train(make_model(), mixture(), plan(steps=2, evaluate_every=2), tmp_path, evaluate)
    saved = load_file(tmp_path / "step-00000002/model.safetensors")
    raw = saved_state(tmp_path / "step-00000002")
    assert all(torch.equal(saved[name], value) for name, value in seen[0].items())
    assert any(not torch.equal(raw[f"weight/{name}"], value) for name, value in seen[0].items())


def test_parts_that_no_batch_reached_do_not_hinder_a_resume(make_model: Models, tmp_path: Path) -> None:
    words = Mixture({"vqa": questions(images=False)}, {"vqa": 1.0}, 0)
    train(make_model(robot=False), words, plan(steps=1), tmp_path)
    assert train(make_model(robot=False), words, plan(steps=2), tmp_path).step == 2


def test_a_frozen_part_stays_and_resumes(make_model: Models, tmp_path: Path) -> None:
    model, frozen = make_model(), plan(steps=2, evaluate_every=1, freeze=("vision",))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model, mixture(), frozen, tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("backbone.vision."), name
    with pytest.raises(InputError, match="other frozen parts"):
        train(make_model(), mixture(), plan(steps=3), tmp_path)
    with pytest.raises(InputError, match="other frozen parts"):
        train(make_model(), mixture(), plan(steps=3, freeze=("vision", "language")), tmp_path)


def test_a_run_of_another_model_or_of_other_data_is_refused(make_model: Models, tmp_path: Path) -> None:
    train(make_model(robot=False), Mixture({"vqa": questions()}, {"vqa": 1.0}, 0), plan(steps=1), tmp_path)
    with pytest.raises(InputError, match="other demonstrations"):
        train(make_model(), mixture(), plan(steps=2), tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": -1},
        {"steps": 1, "batch_size": 5, "accumulate": 2},
        {"steps": 1, "evaluate_every": 0},
        {"steps": 1, "freeze": ("head",)},
        {"steps": 1, "lr_multipliers": {"nose": 0.1}},
        {"steps": 1, "ema": 1.0},
        {"steps": 1, "gradient_report": -1},
    ],
)
def test_a_bad_plan_is_refused_before_anything_is_written(
    make_model: Models, tmp_path: Path, fields: Mapping[str, Any]
) -> None:
    with pytest.raises(InputError):
        train(make_model(), mixture(), plan(**fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bad_data_stops_the_run_with_its_own_message(make_model: Models, tmp_path: Path) -> None:
    robot = demonstrations()
    for example in robot:
        np.asarray(example.target)[1, 2] = np.nan
    with pytest.raises(InputError, match="grip .* is not finite"):
        train(make_model(), Mixture({"robot": robot}, {"robot": 1.0}, 0), plan(steps=3), tmp_path)


def test_light_changes_and_nothing_moves() -> None:
    pixels = torch.zeros(2, 2, 3, 16, 16)
    pixels[..., 4:8, 4:8] = 1.0
    jitter = torch.tensor([0.2, -0.3, 0.1]).expand(2, 2, 3)
    assert torch.allclose(change_light(pixels, torch.zeros(2, 2, 3)), pixels, atol=1e-6)
    changed = change_light(pixels, jitter)
    assert torch.allclose(changed.mean(), pixels.mean() + 0.2, atol=1e-5)
    inside, outside = changed[..., 4:8, 4:8].mean((-1, -2)), changed[..., 10:, 10:].mean((-1, -2))
    assert torch.allclose(inside - outside, torch.tensor(0.7), atol=1e-5)


def test_stores_without_held_out_questions_give_no_score(make_model: Models) -> None:
    model = make_model()
    windows = demonstrations()
    scores = HeldoutScores({"small": {}, "large": {"color": questions()}}, {"robot": spread(windows, 2)})(model)
    components = {f"error of {name}" for name in model.processor.robot().embodiment.action}
    assert scores.keys() == {"action_error", "vqa", "large/color"} | components
    assert HeldoutScores({"small": {}}, {"robot": []})(model) == {}
    assert spread(windows, 0) == []

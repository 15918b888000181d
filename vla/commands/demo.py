"""`vla demo`: records, co-trains, evaluates and reports, end to end; a rerun continues an interrupted run."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vla.commands.record import record_demonstrations
from vla.commands.record_scenes import record_scenes
from vla.common.atomic import atomic_replace, write_json
from vla.common.device import accelerator
from vla.common.plots import read_losses, training_curve
from vla.common.result_table import device_name
from vla.datasets.episodes import EpisodeStore
from vla.datasets.formats.easy_vqa_package import read_easy_vqa
from vla.datasets.vqa import VqaStore
from vla.envs.make import make_env
from vla.errors import InputError, reading
from vla.evaluation.heldout import heldout_by_kind, vqa_accuracy
from vla.evaluation.reports.demo_report import Sample, write_report
from vla.evaluation.rollouts.rollout import rollout
from vla.evaluation.rollouts.summary import summarize
from vla.evaluation.rollouts.trial import Result, trials_for
from vla.models.vla import VLA
from vla.policies.vla import VlaPolicy
from vla.recording.replay import replay
from vla.recording.video import compose, write_video
from vla.recording.zarr_recorder import ZarrRecorder
from vla.training import checkpoint
from vla.training.run import train
from vla.training.run_options import RunOptions
from vla.types import Episode, Example

AGAIN = "remove the folder, and run it again"
TASK = "pick"
EVALUATION_SEEDS = 1_000_000
"""The first seed of the evaluation, distinct from the seeds of the demonstrations."""
EPISODES_PER_OUTCOME = 12
"""Episodes of each outcome in the Rerun file."""


def demo(
    *,
    out: str,
    seed: int,
    backbone: str,
    episodes: int,
    noise: float,
    scenes: int,
    evaluations: int,
    questions: int,
    workers: int,
    parallel: int,
    n_action_steps: int,
    horizon: int,
    turns: int,
    mixture: Mapping[str, float],
    plan: Mapping[str, Any],
) -> None:
    """Runs all phases into the folder `out`. Raises InputError if it holds a demo with other settings."""
    settings = {k: v for k, v in locals().items() if k not in ("out", "workers")}
    progress = Progress(Path(out), json.loads(json.dumps(settings, default=dict)))
    folder = progress.folder
    stores = {"scenes": str(folder / "scenes.zarr"), "easy_vqa": str(folder / "easy_vqa.zarr")}

    def record() -> None:
        record_demonstrations(TASK, episodes, str(folder / "demos.zarr"), seed, noise, True, workers)
        record_scenes(stores["scenes"], scenes, seed, True, workers)
        import_easy_vqa(Path(stores["easy_vqa"]))

    progress.run("record", record)
    progress.run(
        "train",
        lambda: train(
            RunOptions(
                data=str(folder / "demos.zarr"),
                vqa=stores,
                out=str(folder / "train"),
                backbone=backbone,
                mixture=mixture,
                horizon=horizon,
                turns=turns,
                heldout_questions=questions // 4,
                predict={"gripper [rad]": "relative"},  # the setting of the published results
                plan={**plan, "seed": seed},
            )
        ),
    )
    model = VLA.load(folder / "train" / "best").to(accelerator())
    progress.run("evaluate", lambda: evaluate(model, folder, stores, evaluations, questions, parallel, n_action_steps))
    summary = report(model, folder, stores["scenes"], progress.minutes, backbone == "scratch")
    low, high = summary["success_ci95"]
    print(
        f"success {summary['success_rate']:.2f} [{low:.2f}, {high:.2f}], with the instruction swapped "
        f"{summary['instruction_swap_success']:.2f}, in {summary['minutes']['total']:.1f} minutes\n"
        f"open {folder / 'report.html'}, or: vla view {folder}"
    )


class Progress:
    """Which phases are done and how long each took, stored in `folder/progress.json`."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self._path, self._settings = folder, folder / "progress.json", settings
        self._phases: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            with reading(self._path, AGAIN):
                saved = json.loads(self._path.read_text())
                changed = sorted(k for k in settings if saved["settings"].get(k) != settings[k])
                phases = {
                    name: {"done": phase["done"], "minutes": phase["minutes"] + 0.0}
                    for name, phase in saved["phases"].items()
                }
            if saved["settings"] != settings:
                raise InputError(
                    f"{folder} holds a demo with other settings ({', '.join(changed)}): remove it, or set out="
                )
            self._phases = phases
        elif folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty and holds no demo: remove it, or set out=")
        folder.mkdir(parents=True, exist_ok=True)
        self._save()

    @property
    def minutes(self) -> dict[str, float]:
        """The duration of each phase, and their sum as "total"."""
        durations = {name: phase["minutes"] for name, phase in self._phases.items()}
        return durations | {"total": sum(durations.values())}

    def run(self, name: str, work: Callable[[], Any]) -> None:
        """Runs the phase unless it is done; the time of an interrupted attempt is added."""
        phase = self._phases.setdefault(name, {"done": False, "minutes": 0.0})
        if phase["done"]:
            tqdm.write(f"{name}: done before, in {phase['minutes']:.1f} minutes")
            return
        start, before = time.monotonic(), phase["minutes"]
        try:
            outcome = work()
            # Training that was stopped by SIGTERM returns without being finished.
            if getattr(outcome, "finished", True) is False:
                raise SystemExit(0)
            phase["done"] = True
        finally:
            phase["minutes"] = before + (time.monotonic() - start) / 60
            self._save()

    def _save(self) -> None:
        write_json(self._path, {"settings": self._settings, "phases": self._phases})


def import_easy_vqa(path: Path) -> None:
    """Imports the training images of easy-vqa into a store, unless it exists."""
    if path.exists():
        return
    items = list(read_easy_vqa("train"))
    height, width = next(iter(items[0].images.values())).shape[:2]
    with atomic_replace(path) as partial:
        VqaStore.create(partial, list(items[0].images), height, width).extend(items)


def evaluate(
    model: VLA,
    folder: Path,
    stores: Mapping[str, str],
    evaluations: int,
    questions: int,
    parallel: int,
    n_action_steps: int,
) -> None:
    """Records rollouts in `rollouts.zarr`, answers held-out questions, and writes `evaluation.json`."""
    shutil.rmtree(folder / "rollouts.zarr", ignore_errors=True)
    policy = VlaPolicy(model)
    trials = trials_for(range(EVALUATION_SEEDS, EVALUATION_SEEDS + evaluations), swap=True)
    with EpisodeStore.create(folder / "rollouts.zarr", policy.embodiment) as store:
        results = rollout(
            partial(make_env, TASK, phrasing="heldout"),
            lambda env: policy,
            trials,
            parallel=parallel,
            n_action_steps=n_action_steps,
            recorder=partial(ZarrRecorder, store),
        )
    accuracy = {}
    for name, path in stores.items():
        heldout = heldout_by_kind(VqaStore(path), questions)
        accuracy[name] = vqa_accuracy(model, heldout)
    write_json(folder / "evaluation.json", {"results": [asdict(r) for r in results], "vqa": accuracy})


def report(model: VLA, folder: Path, scenes: str, minutes: Mapping[str, float], from_scratch: bool) -> dict[str, Any]:
    """Writes summary.json, rollouts.rrd, the videos, the training curve and report.html; returns the summary."""
    with reading(folder / "evaluation.json", AGAIN):
        evaluation = json.loads((folder / "evaluation.json").read_text())
        results = [Result(**r) for r in evaluation["results"]]
        questions, real = (evaluation["vqa"][name] for name in ("scenes", "easy_vqa"))
    latest = checkpoint.latest(folder / "train")
    assert latest is not None
    with reading(latest / "training.json", AGAIN):
        history = json.loads((latest / "training.json").read_text())["evaluations"]
    losses = read_losses(folder / "train")
    numbers = summarize(results)
    summary = {
        **{k: numbers[k] for k in ("success_rate", "success_ci95", "episodes", "wrong_object_rate")},
        "instruction_swap_success": numbers["instruction_swap_success"],
        "vqa_accuracy": questions,
        "real_vqa_accuracy": sum(real.values()) / len(real),
        "from_scratch": from_scratch,
        "minutes": dict(minutes),
        "params": sum(p.numel() for p in model.parameters()),
        "device": device_name(),
        "cores": os.cpu_count(),
    }
    write_json(folder / "summary.json", summary)
    with EpisodeStore.open(folder / "rollouts.zarr") as store:
        selected = _selected_episodes(store)
        replay((store[i] for i in sorted(selected)), save=folder / "rollouts.rrd")
        videos = _videos(folder, [store[i] for i in selected])
    training_curve(losses, history, folder / "training.png")
    reference = files("vla") / "assets" / "nano" / "from_scratch.json"
    write_report(
        folder,
        summary | {"from_scratch_reference": json.loads(reference.read_text()) if reference.is_file() else None},
        history=history,
        losses=losses,
        results=results,
        videos=videos,
        samples=_samples(model, scenes),
        note="A policy that picks up the object an instruction names, among three to five on the table. "
        "Scenes and wordings of the evaluation were not seen in training.",
    )
    return summary


def _selected_episodes(store: EpisodeStore) -> list[int]:
    """Indices of the first failures and successes under the original instruction of the seed."""
    named = [i for i, r in enumerate(store.records) if r.info["group"] == "named"]
    outcomes = ([i for i in named if store.records[i].success is success] for success in (False, True))
    return [i for outcome in outcomes for i in outcome[:EPISODES_PER_OUTCOME]]


def _videos(folder: Path, episodes: Sequence[Episode]) -> dict[str, Path]:
    videos = {}
    for name, success in (("success", True), ("failure", False)):
        episode = next((e for e in episodes if e.success is success), None)
        if episode is not None:
            videos[name] = folder / f"{name}.mp4"
            write_video(videos[name], compose(episode), episode.embodiment.control_hz)
    return videos


def _samples(model: VLA, scenes: str) -> list[Sample]:
    """Two held-out questions of each kind with the model's answers."""
    samples = []
    for kind, examples in heldout_by_kind(VqaStore(scenes), 2).items():
        batch = model.processor.question_prompt([e.prompt for e in examples], [e.images for e in examples])
        for example, answer in zip(examples, model.generate_text(batch, max_tokens=8), strict=True):
            samples.append(Sample(_view(example), example.prompt, answer, str(example.target), kind))
    return samples


def _view(example: Example) -> Any:
    """The image of the camera that the question names, else the first."""
    named = [camera for camera in example.images if f"{camera} view" in example.prompt]
    return example.images[named[0] if named else next(iter(example.images))]

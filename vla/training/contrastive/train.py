"""The contrastive stage: trains a backbone's vision encoder on images and captions, before the language model."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from vla.datasets.order import Order
from vla.datasets.vqa import VqaExamples, VqaStore
from vla.errors import InputError
from vla.models.backbones.composed import ComposedVLM
from vla.models.vla import VLA
from vla.training import checkpoint
from vla.training.augment import change_light, jitter
from vla.training.contrastive.encoder import ContrastiveOptions, PairEncoder, tokens
from vla.training.contrastive.zero_shot import zero_shot
from vla.training.distributed import DistributedContext, join
from vla.training.log import Log, log
from vla.training.loop import Outcome
from vla.training.optimizer import Ema, freeze
from vla.training.question_run import QuestionRun
from vla.training.resumption import changes, settings
from vla.training.schedule import learning_rate
from vla.training.step import Diverged, computing
from vla.training.train_config import TrainConfig
from vla.types import Example

CAPTION = "caption"
HELD_OUT = 200


def train_contrastive(run: QuestionRun, options: ContrastiveOptions) -> Outcome:
    """Trains the vision encoder of a model in place, with a new text encoder, on the captions of the stores.

    The checkpoint is for `vla train backbone=`, with the text encoder in a separate file. A finished run is not
    repeated; an interrupted run starts from the beginning.

    Raises:
        InputError: there are fewer captions than a batch has rows, the backbone is not composed, an option is invalid,
            or the run is finished with other options.
    """
    model, plan, folder = run.model, run.plan, run.folder
    world, run_settings = join(), settings(plan, {"captions": 1.0}, run.origin)
    if finished := checkpoint.newest(folder, world):
        outcome = _outcome(folder, finished, run_settings)
        outcome.print_summary(folder, outcome.step, drives=False)
        return outcome
    vision = _vision(model, plan)
    captions = _Captions.open(run.stores, plan)
    plan.rows(world.size)
    freeze(model, plan.freeze)
    both = PairEncoder(vision, model.processor.text_vocab, options).to(world.device)
    folder.mkdir(parents=True, exist_ok=True)
    with log(folder, 0, plan, world.first) as logger:
        scores = _optimize(both, model, captions, plan, options.noise, world, logger)
    if world.first:
        _save(folder, plan.steps, model, both, scores, run_settings)
    world.barrier()
    outcome = _outcome(folder, folder / f"step-{plan.steps:08d}", run_settings)
    if world.first:
        outcome.print_summary(folder, 0, drives=False)
    return outcome


def _vision(model: VLA, plan: TrainConfig) -> nn.Module:
    """The vision encoder. Raises InputError for a backbone or a plan that the stage does not support."""
    if not isinstance(model.backbone, ComposedVLM):
        raise InputError("the contrastive stage needs a separate vision encoder: backbone=nano, scratch, or parts")
    if plan.optimizer != "adamw":
        raise InputError("the contrastive stage supports only plan.optimizer=adamw")
    if plan.loader_workers is not None:
        raise InputError("the contrastive stage reads its pairs itself: set plan.loader_workers=null")
    if not plan.augmentation.photometric_only:
        raise InputError("the contrastive stage supports only photometric augmentation: set plan.augment=0.1")
    return model.backbone.vision


@dataclass(frozen=True)
class _Captions:
    """Images with captions: those of training, and the held-out ones."""

    train: Sequence[VqaExamples]
    heldout: Sequence[Example]

    @classmethod
    def open(cls, stores: Mapping[str, VqaStore], plan: TrainConfig) -> _Captions:
        """Raises InputError if there are fewer captions than a batch has rows, or none is held out."""
        pairs = [store.examples("train", [CAPTION]) for store in stores.values()]
        shown = [e for store in stores.values() for e in _spread(store.examples("held-out", [CAPTION]))]
        captions = cls(pairs, shown)
        if len(captions) < plan.batch_size or not shown:
            raise InputError(
                f"{len(captions)} captions to train on and {len(shown)} held out, for batches of {plan.batch_size}: "
                "vla record task=scenes questions=instruct records captions"
            )
        return captions

    def __len__(self) -> int:
        return sum(map(len, self.train))

    def __getitem__(self, index: int) -> Example:
        for examples in self.train:
            if index < len(examples):
                return examples[index]
            index -= len(examples)
        raise IndexError(index)

    def noisy(self, examples: Sequence[Example], noise: float, rng: np.random.Generator) -> list[str]:
        """The captions of the examples, a share `noise` of them replaced by those of other images."""
        texts = [str(e.target) for e in examples]
        for row in np.flatnonzero(rng.random(len(texts)) < noise):
            texts[row] = str(self[int(rng.integers(len(self)))].target)
        return texts


def _optimize(
    both: PairEncoder,
    model: VLA,
    captions: _Captions,
    plan: TrainConfig,
    noise: float,
    world: DistributedContext,
    logger: Log,
) -> list[dict[str, Any]]:
    """Trains `both`, which ends with the averaged weights; returns the held-out scores of each evaluation."""
    trained = [p for p in both.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.98), weight_decay=plan.weight_decay)
    ema, order, scores = Ema(both, plan.ema), Order(len(captions), plan.seed), list[dict[str, Any]]()
    for step in range(plan.steps):
        indices = np.arange(step * plan.batch_size + world.rank, (step + 1) * plan.batch_size, world.size)
        examples = [captions[i] for i in order(indices).tolist()]
        rng = np.random.default_rng((plan.seed, step, world.rank))
        texts = captions.noisy(examples, noise, rng)
        shift = jitter(torch.from_numpy(rng.integers(2**62, size=len(texts))), 1, plan.augmentation)
        pixels = change_light(_pixels(model, examples, world)[:, None], shift.to(world.device))[:, 0]
        with computing(plan, world):
            loss = both.loss(both.encode_images(pixels), _texts(both, model, texts, world))
        optimizer.zero_grad()
        loss.backward()
        _average_gradients(trained, world)
        norm = torch.nn.utils.clip_grad_norm_(trained, plan.clip)
        if not math.isfinite(norm.item()):
            raise Diverged(f"the loss is not a number at step {step}: lower plan.lr")
        optimizer.param_groups[0]["lr"] = learning_rate(plan, step)
        optimizer.step()
        both.clamp()
        ema.update(both, step)
        logger.bar.update()
        logger.scalars({"loss": loss.item(), "scale": both.logit_scale.item()}, step)
        if (step + 1) % plan.evaluate_every == 0 or step + 1 == plan.steps:
            with ema.applied(both):
                scores.append({"step": step + 1} | _scores(both.eval(), model, captions.heldout, world))
            both.train()
            logger.scalars(scores[-1], step, "heldout/")
            logger.write_line(", ".join(f"{k} {v:.3g}" for k, v in scores[-1].items()))
    ema.swap(both)
    return scores


def _scores(both: PairEncoder, model: VLA, shown: Sequence[Example], world: DistributedContext) -> dict[str, float]:
    with torch.inference_mode():
        images = torch.cat([both.encode_images(_pixels(model, rows, world)) for rows in batched(shown, 64)])
        return zero_shot(images, [str(e.target) for e in shown], lambda texts: _texts(both, model, texts, world))


def _pixels(model: VLA, examples: Sequence[Example], world: DistributedContext) -> Float[Tensor, "b 3 h w"]:
    """The first image of each example, which the caption describes."""
    views = [dict(list(e.images.items())[:1]) for e in examples]
    batch = model.processor.question_prompt([CAPTION] * len(views), views)
    return model.processor.pixels(batch.images[:, 0].to(world.device))


def _texts(both: PairEncoder, model: VLA, texts: Sequence[str], world: DistributedContext) -> Float[Tensor, "b d"]:
    ids, mask = tokens(model.processor.tokenizer, texts, both.max_tokens)
    return both.encode_texts(ids.to(world.device), mask.to(world.device))


def _average_gradients(trained: Sequence[nn.Parameter], world: DistributedContext) -> None:
    for parameter in trained if world.size > 1 else ():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= world.size


def _spread(examples: VqaExamples) -> list[Example]:
    indices = np.unique(np.linspace(0, len(examples) - 1, min(HELD_OUT, len(examples))).astype(int))
    return [examples[int(i)] for i in indices] if len(examples) else []


def _save(
    run: Path, step: int, model: VLA, both: PairEncoder, scores: list[dict[str, Any]], run_settings: Mapping[str, Any]
) -> None:
    final, partial = run / f"step-{step:08d}", run / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    model.save(partial)
    save_file({k: w.contiguous() for k, w in both.text_weights().items()}, partial / "text_encoder.safetensors")
    (partial / "contrastive.json").write_text(json.dumps(scores))
    (partial / "settings.json").write_text(json.dumps(run_settings))
    os.replace(partial, final)
    checkpoint.mark_best(run, final)


def _outcome(run: Path, found: Path, run_settings: Mapping[str, Any]) -> Outcome:
    if not (scores := found / "contrastive.json").is_file():
        raise InputError(f"{run} is of another stage: train into another folder")
    file = found / "settings.json"
    if changed := changes(found, json.loads(file.read_text()) if file.is_file() else {}, run_settings):
        raise InputError(f"{run} is finished, with other settings ({', '.join(changed)}): train into another folder")
    return Outcome(checkpoint.step_of(found), True, found, json.loads(scores.read_text()))

"""The contrastive stage: trains a backbone's vision encoder on images and captions, before the language model."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from vla.datasets.order import Order
from vla.datasets.vqa import VqaExamples, VqaStore
from vla.errors import InputError
from vla.models.backbones.composed import ComposedVLM
from vla.models.vla import VLA
from vla.training import checkpoint
from vla.training.augment import change_light, jitter
from vla.training.contrastive.encoder import STARTS, PairEncoder, tokens
from vla.training.contrastive.zero_shot import zero_shot
from vla.training.distributed import DistributedContext, join
from vla.training.log import log
from vla.training.loop import Outcome
from vla.training.optimizer import Ema, freeze
from vla.training.resumption import changes, settings
from vla.training.schedule import learning_rate
from vla.training.step import Diverged, computing
from vla.training.train_config import TrainConfig
from vla.types import Example

CAPTION = "caption"
HELD_OUT = 200
OPTIONS = {"loss", "width", "layers", "max_tokens"}
"""Options of `PairEncoder`."""


def train_contrastive(
    model: VLA,
    stores: Mapping[str, VqaStore],
    plan: TrainConfig,
    run: Path,
    chunk: int | None = None,
    noise: float = 0.0,
    origin: Mapping[str, Any] | None = None,
    **encoder: Any,
) -> Outcome:
    """Trains the vision encoder of `model` in place, with a new text encoder, on the captions of `stores`.

    A finished run is not repeated; an interrupted run starts from the beginning.

    Args:
        model: The model; its backbone must be composed of a vision encoder and a language model.
        stores: The question stores by name; only captions are used.
        plan: The training configuration.
        run: The output folder: a checkpoint for `vla train backbone=`, with the text encoder in a separate file.
        chunk: Rows of the logit matrix that are in memory at a time; None: all.
        noise: The share of images that get the caption of another image (ALIGN learns from noisy pairs).
        origin: Where the model and the data come from (JSON values).
        **encoder: Options of `PairEncoder`.

    Raises:
        InputError: there are fewer captions than a batch has rows, the backbone is not composed, an option is invalid,
            or the run is finished with other options.
    """
    world, run_settings = join(), settings(plan, {"captions": 1.0}, origin or {})
    if finished := checkpoint.newest(run, world):
        outcome = _outcome(run, finished, run_settings)
        outcome.print_summary(run, outcome.step, drives=False)
        return outcome
    if not isinstance(model.backbone, ComposedVLM):
        raise InputError("the contrastive stage needs a separate vision encoder: backbone=nano, scratch, or parts")
    if unknown := sorted(encoder.keys() - OPTIONS):
        raise InputError(f"contrastive takes {', '.join(sorted(OPTIONS))}, chunk and noise, not {', '.join(unknown)}")
    if encoder.get("loss", "clip") not in STARTS:
        raise InputError(f"contrastive.loss is {', '.join(STARTS)}, not {encoder['loss']}")
    if not 0 <= noise < 1:
        raise InputError(f"contrastive.noise is a share from 0 to below 1, not {noise}")
    if plan.optimizer != "adamw":
        raise InputError("the contrastive stage supports only plan.optimizer=adamw")
    if plan.loader_workers is not None:
        raise InputError("the contrastive stage reads its pairs itself: set plan.loader_workers=null")
    if not plan.augmentation.photometric_only:
        raise InputError("the contrastive stage supports only photometric augmentation: set plan.augment=0.1")
    pairs = [store.examples("train", [CAPTION]) for store in stores.values()]
    shown = [e for store in stores.values() for e in _spread(store.examples("held-out", [CAPTION]))]
    count = sum(map(len, pairs))
    if count < plan.batch_size or not shown:
        raise InputError(
            f"{count} captions to train on and {len(shown)} held out, for batches of {plan.batch_size}: "
            "vla record task=scenes questions=instruct records captions"
        )
    plan.rows(world.size)
    freeze(model, plan.freeze)
    both = PairEncoder(model.backbone.vision, model.processor.text_vocab, **encoder).to(world.device)
    trained = [p for p in both.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.98), weight_decay=plan.weight_decay)
    ema, order, scores = Ema(both, plan.ema), Order(count, plan.seed), list[dict[str, Any]]()
    run.mkdir(parents=True, exist_ok=True)
    with log(run, 0, plan, world.first) as logger:
        for step in range(plan.steps):
            indices = np.arange(step * plan.batch_size + world.rank, (step + 1) * plan.batch_size, world.size)
            examples = [_at(pairs, i) for i in order(indices).tolist()]
            rng = np.random.default_rng((plan.seed, step, world.rank))
            texts = [str(e.target) for e in examples]
            for row in np.flatnonzero(rng.random(len(texts)) < noise):
                texts[row] = str(_at(pairs, int(rng.integers(count))).target)
            shift = jitter(torch.from_numpy(rng.integers(2**62, size=len(texts))), 1, plan.augmentation)
            pixels = change_light(_pixels(model, examples, world)[:, None], shift.to(world.device))[:, 0]
            with computing(plan, world):
                loss = both.loss(both.encode_images(pixels), _texts(both, model, texts, world), chunk)
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
                ema.swap(both)
                scores.append({"step": step + 1} | _scores(both.eval(), model, shown, world))
                ema.swap(both.train())
                logger.scalars(scores[-1], step, "heldout/")
                logger.write_line(", ".join(f"{k} {v:.3g}" for k, v in scores[-1].items()))
    ema.swap(both)
    if world.first:
        _save(run, plan.steps, model, both, scores, run_settings)
    world.barrier()
    outcome = _outcome(run, run / f"step-{plan.steps:08d}", run_settings)
    if world.first:
        outcome.print_summary(run, 0, drives=False)
    return outcome


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


def _average_gradients(trained: Sequence[torch.nn.Parameter], world: DistributedContext) -> None:
    for parameter in trained if world.size > 1 else ():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= world.size


def _at(pairs: Sequence[VqaExamples], index: int) -> Example:
    for examples in pairs:
        if index < len(examples):
            return examples[index]
        index -= len(examples)
    raise IndexError(index)


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

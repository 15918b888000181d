"""A small policy of LeRobot's pi0-FAST, with tokenizers in the layout of the published ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fast_files import PublishedProcessor, published
from jaxtyping import Float
from lerobot_policies import ACTION, HORIZON, LeRobotReference, gemma_tokenizer, reference, small_gemma, statistics
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from vla.types import Observation

WORDS, FAST_WORDS, SKIPPED = 900, 500, 128
"""Sizes of the vocabularies of texts and of actions, and the number of words at the end that are no actions."""
Pairs = Sequence[tuple[Observation, Float[np.ndarray, "_h _a"]]]


def chunk(seed: int, steps: int = HORIZON) -> Float[np.ndarray, "h a"]:
    """A random chunk in robot units."""
    rng = np.random.default_rng(seed)
    return rng.normal(scale=0.15, size=(steps, ACTION)).cumsum(0) + rng.uniform(0, 1, ACTION)


def fast_reference(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> LeRobotReference:
    """Makes a policy and saves it."""
    return reference(_fast, folder, monkeypatch, **options)


def memorise(theirs: LeRobotReference, pairs: Pairs, steps: int = 100) -> None:
    """Trains LeRobot's policy until it writes the chunks of these observations, and saves it."""
    batches = [theirs.batch(seen, actions) for seen, actions in pairs]
    policy = theirs.policy.train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3, weight_decay=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * min(1.0, 2 * (1 - step / steps))
            losses = [policy.forward(batch)[0] for batch in batches]
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
    policy.eval().save_pretrained(theirs.folder)


def _fast(folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    from lerobot.policies.pi0_fast import modeling_pi0_fast as modeling
    from lerobot.policies.pi0_fast.configuration_pi0_fast import PI0FastConfig
    from lerobot.policies.pi0_fast.processor_pi0_fast import make_pi0_fast_pre_post_processors
    from lerobot.processor import tokenizer_processor

    rng = np.random.default_rng(0)
    filler = ["".join(rng.choice(list("abcdefghijklmnop"), 6)) for _ in range(2000)]
    cuts = [pre_tokenizers.Split("▁", "isolated"), pre_tokenizers.Punctuation()]
    letters = "".join(map(chr, range(33, 127)))  # PaliGemma's tokenizer has no unknown ones
    tokenizer = gemma_tokenizer([*filler, letters, *["Action: |"] * 3], WORDS, cuts)
    assert tokenizer.vocab_size == WORDS
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "fast").mkdir(exist_ok=True)
    mean, std = (statistics()["action"][name].numpy() for name in ("mean", "std"))
    published(folder / "fast", 10, [(chunk(seed) - mean) / std for seed in range(300)], FAST_WORDS)
    small_gemma(modeling, monkeypatch, WORDS)
    # The processor's code is on a hub, and a pipeline that LeRobot loads names PaliGemma's tokenizer there.
    processors = SimpleNamespace(from_pretrained=lambda name, **_: PublishedProcessor(Path(name)))
    monkeypatch.setattr(modeling, "AutoProcessor", processors)
    monkeypatch.setattr(tokenizer_processor, "AutoProcessor", processors)
    tokenizers = SimpleNamespace(from_pretrained=partial(_tokenizer, folder / "tokenizer"))
    monkeypatch.setattr(tokenizer_processor, "AutoTokenizer", tokenizers)
    names = {"text_tokenizer_name": str(folder / "tokenizer"), "action_tokenizer_name": str(folder / "fast")}
    config = PI0FastConfig(**{"image_resolution": (28, 28)} | names | options)
    return modeling.PI0FastPolicy(config), *make_pi0_fast_pre_post_processors(config, statistics())


def _tokenizer(folder: Path, name: str, **options: Any) -> Any:
    return AutoTokenizer.from_pretrained(folder if name.startswith("google/") else name, **options)

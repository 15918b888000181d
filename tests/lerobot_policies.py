"""Small random policies of LeRobot's own classes, saved as LeRobot saves them, with their processors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import UInt8
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from vla.embodiment import Embodiment
from vla.models.released.lerobot_export import export_lerobot
from vla.models.vla import VLA
from vla.policies.vla import VlaPolicy
from vla.types import Observation

STATE, ACTION, HORIZON, PADDED = 7, 5, 10, 32
CAMERAS = ("front", "wrist")
BODY = Embodiment(
    name="bot",
    cameras=CAMERAS,
    state=tuple(f"s{i} [rad]" for i in range(STATE)),
    action=tuple(f"a{i} [rad]" for i in range(ACTION)),
    action_low=(-1e3,) * ACTION,
    action_high=(1e3,) * ACTION,
    control_hz=10.0,
)
TEXTS = ["Task: pick up the red cube, State: 1 2 3 4 5 6 7 8 9 0 -1;\nAction: ", "place_it on the left ABCXYZ,.;:-"]


@dataclass
class LeRobotReference:
    """LeRobot's policy with its processors, and the folder in which they are saved."""

    policy: Any
    before: Any
    after: Any
    folder: Path

    def batch(self, observation: Observation, actions: np.ndarray[Any, Any] | None = None) -> dict[str, Any]:
        """LeRobot's batch of one observation, and of a chunk of actions."""
        values: dict[str, Any] = {
            "observation.state": torch.from_numpy(observation.state).float(),
            "task": observation.instruction,
        }
        for camera, image in observation.images.items():
            values[f"observation.images.{camera}"] = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        if actions is not None:
            values["action"] = torch.from_numpy(actions).float()[None]
        batch: dict[str, Any] = self.before(values)
        for name, value in batch.items():
            if name.startswith("observation.language") and value.ndim == 1:
                batch[name] = value[None]
        return batch

    def reloaded(self, folder: Path) -> LeRobotReference:
        """The policy and the processors that LeRobot loads from another folder."""
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import make_pre_post_processors

        config = PreTrainedConfig.from_pretrained(folder)
        policy = type(self.policy).from_pretrained(folder, config=config)
        saved, loaded = self.policy.state_dict(), policy.state_dict()
        assert any(not torch.equal(saved[name], weight) for name, weight in loaded.items() if "lm_head" not in name)
        return LeRobotReference(policy.eval(), *make_pre_post_processors(config, str(folder)), folder)

    def chunk(self, observation: Observation, noise: torch.Tensor) -> np.ndarray[Any, Any]:
        """The chunk in robot units that LeRobot's policy makes of this noise, (h, a)."""
        self.policy.model.sample_noise = lambda shape, device: noise[None]
        with torch.no_grad():
            chunk = self.after(self.policy.predict_action_chunk(self.batch(observation)))
        return np.asarray(chunk[0].double())


def observation(size: tuple[int, int] = (48, 64), task: str = "pick_up the red cube", seed: int = 0) -> Observation:
    """A random observation with images of this height and width."""
    rng = np.random.default_rng(seed)
    images: dict[str, UInt8[np.ndarray, "_h _w 3"]] = {
        camera: rng.integers(0, 256, (*size, 3), np.uint8) for camera in CAMERAS
    }
    return Observation(images, rng.normal(size=STATE) * 1.5, task, 0.0)


Make = Callable[[Path, dict[str, Any], pytest.MonkeyPatch], tuple[Any, Any, Any]]
"""Makes a policy with its processors."""


def reference(kind: str | Make, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> LeRobotReference:
    """Makes a policy of this kind and saves it."""
    from lerobot.configs.types import FeatureType, PolicyFeature

    make = kind if callable(kind) else _smolvla if kind == "smolvla" else partial(make_pi, kind)
    folder.mkdir(parents=True, exist_ok=True)
    features: dict[str, Any] = {
        "input_features": {
            "observation.state": PolicyFeature(FeatureType.STATE, (STATE,)),
            **{f"observation.images.{camera}": PolicyFeature(FeatureType.VISUAL, (3, 48, 64)) for camera in CAMERAS},
        },
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
        "device": "cpu",
        "chunk_size": HORIZON,
        "n_action_steps": HORIZON,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy, before, after = make(folder, features | options, monkeypatch)
        with torch.no_grad():
            for name, weight in policy.named_parameters():
                # Norms are 0 or 1 at first, and adaptive ones do nothing.
                weight.copy_(weight * 1.5 + (0.2 * torch.randn_like(weight) if "norm" in name else 0))
    for part in (policy, before, after):
        part.save_pretrained(folder / "policy")
    return LeRobotReference(policy.eval(), before, after, folder / "policy")


def statistics() -> dict[str, dict[str, torch.Tensor]]:
    """Random statistics of the state and the action."""
    generator = torch.Generator().manual_seed(1)

    def made(width: int) -> dict[str, torch.Tensor]:
        numbers = {name: torch.rand(width, generator=generator) for name in ("mean", "std", "q01", "q99", "min", "max")}
        return numbers | {"q01": -numbers["q01"] - 1, "q99": numbers["q99"] + 1, "std": numbers["std"] + 0.3}

    return {"observation.state": made(STATE), "action": made(ACTION)}


def make_pi(kind: str, folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    """Makes a pi0 or pi0.5 with its processors."""
    if kind == "pi0":
        from lerobot.policies.pi0 import modeling_pi0 as modeling
        from lerobot.policies.pi0 import processor_pi0 as processor
        from lerobot.policies.pi0.configuration_pi0 import PI0Config as Config

        Policy, make = modeling.PI0Policy, processor.make_pi0_pre_post_processors
    else:
        from lerobot.policies.pi05 import modeling_pi05 as modeling  # type: ignore[no-redef]
        from lerobot.policies.pi05 import processor_pi05 as processor  # type: ignore[no-redef]
        from lerobot.policies.pi05.configuration_pi05 import PI05Config as Config  # type: ignore[assignment]

        Policy, make = modeling.PI05Policy, processor.make_pi05_pre_post_processors  # type: ignore[attr-defined]
    gemma_tokenizer().save_pretrained(folder / "tokenizer")
    small_pi(modeling, monkeypatch)
    step = partial(processor.TokenizerProcessorStep)
    monkeypatch.setattr(
        processor,
        "TokenizerProcessorStep",
        lambda **settings: step(**{**settings, "tokenizer_name": str(folder / "tokenizer")}),
    )
    config = Config(**{"image_resolution": (28, 28)} | options)
    return Policy(config), *make(config, statistics())


def save_as_openpi(theirs: LeRobotReference, folder: Path) -> None:
    """Saves a pi0 or pi0.5 as openpi's script does."""
    (folder / "assets/bot").mkdir(parents=True)
    weights = {
        name.removeprefix("model."): weight for name, weight in load_file(theirs.folder / "model.safetensors").items()
    }
    # openpi's file has the tied embedding as lm_head alone, and pi0's projection of the state in pi0.5 too.
    words = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
    weights["paligemma_with_expert.paligemma.lm_head.weight"] = weights.pop(words)
    weights["state_proj.weight"] = weights.get("state_proj.weight", torch.zeros(32, PADDED))
    save_file(weights, folder / "model.safetensors")
    settings = {"action_horizon": HORIZON, "action_dim": PADDED, "action_expert_variant": "gemma_300m"}
    (folder / "config.json").write_text(json.dumps(settings))
    padded = {
        name: {
            end: [*values[end].tolist(), *[0.0] * (PADDED - len(values[end]))] for end in ("mean", "std", "q01", "q99")
        }
        for name, values in zip(("state", "actions"), statistics().values(), strict=True)
    }
    (folder / "assets/bot/norm_stats.json").write_text(json.dumps({"norm_stats": padded}))


@torch.no_grad()
def change(model: torch.nn.Module) -> None:
    """Changes all weights a little, as training does."""
    for name, weight in model.named_parameters():
        weight.add_(0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))))


def check_export(
    model: VLA, theirs: LeRobotReference, folder: Path, noise: torch.Tensor, body: Embodiment = BODY
) -> LeRobotReference:
    """Exports the model to `folder`, and compares its chunk with that of what LeRobot loads, which is returned."""
    seen = observation()
    export_lerobot(model, folder)
    back, ours = theirs.reloaded(folder), VlaPolicy(model, body).predict(seen)
    assert ours is not None
    np.testing.assert_allclose(back.chunk(seen, noise), ours.actions, atol=1e-4)
    return back


def tiny(kind: str) -> None:
    """Lets LeRobot's classes have the small sizes in the rest of this process, and start from the noise of ours."""
    patch = pytest.MonkeyPatch()
    if kind == "smolvla":
        from lerobot.policies.smolvla.modeling_smolvla import VLAFlowMatching as Flow
    else:
        from lerobot.policies.pi05 import modeling_pi05

        small_pi(modeling_pi05, patch)
        Flow = modeling_pi05.PI05Pytorch  # type: ignore[misc]
    patch.setattr(Flow, "sample_noise", lambda self, shape, device: noise()[None].expand(shape))


def noise(horizon: int = HORIZON) -> torch.Tensor:
    """The noise of our decoding, (h, a)."""
    return torch.randn(horizon, PADDED, generator=torch.Generator().manual_seed(0))


def small_pi(modeling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small sizes of pi0 and pi0.5 in place of the variants."""
    small_gemma(modeling, monkeypatch)
    monkeypatch.setattr(modeling, "PiGemmaForCausalLM", partial(_small_language, modeling.PiGemmaForCausalLM))


def _small_language(language: Any, config: Any) -> Any:
    config.vocab_size = VOCABULARY
    return language(config=config)


VOCABULARY = 400


def small_gemma(modeling: Any, monkeypatch: pytest.MonkeyPatch, vocabulary: int = VOCABULARY) -> None:
    """Small sizes in place of the variants, which are hard-coded; 8 heads stand in a reshape of the original."""
    sizes = {"depth": 3, "num_heads": 8, "num_kv_heads": 2, "head_dim": 16}
    backbone, expert = {"width": 64, "mlp_dim": 128}, {"width": 32, "mlp_dim": 96}
    monkeypatch.setattr(
        modeling,
        "get_gemma_config",
        lambda variant: modeling.GemmaConfig(**sizes, **(backbone if variant == "gemma_2b" else expert)),
    )
    vlm = modeling.PaliGemmaForConditionalGenerationWithPiGemma
    vision = {"hidden_size": 144, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 200}

    def small_vlm(config: Any) -> Any:
        config._vocab_size = config.image_token_index = config.text_config.vocab_size = vocabulary
        for name, value in {**vision, "projection_dim": 64, "patch_size": 14, "image_size": 28}.items():
            setattr(config.vision_config, name, value)
        return vlm(config=config)

    monkeypatch.setattr(modeling, "PaliGemmaForConditionalGenerationWithPiGemma", small_vlm)


def gemma_tokenizer(
    texts: Sequence[str] = (), size: int = 390, cuts: Sequence[pre_tokenizers.PreTokenizer] = ()
) -> PreTrainedTokenizerFast:
    """A small tokenizer that begins a text as PaliGemma's does, with further `texts` and `cuts` of words."""
    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.normalizer = normalizers.Replace(" ", "▁")
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("\n", "isolated"), *cuts])
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    words.train_from_iterator([*TEXTS * 3, *texts], trainers.BpeTrainer(vocab_size=size, special_tokens=special))
    words.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **names)


def _smolvla(folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
    from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors

    tokenizer = _smolvlm_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    SmolVLMConfig(
        image_token_id=ids("<image>"),
        scale_factor=4,
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 8,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 96,
            "intermediate_size": 128,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": len(tokenizer),
            "rope_theta": 100000.0,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 512,
            "pad_token_id": ids("<|im_end|>"),
        },
    ).save_pretrained(folder / "vlm")
    SmolVLMProcessor(SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor(), 4).save_pretrained(folder / "vlm")
    settings = {"resize_imgs_with_padding": (64, 64), "num_vlm_layers": 4, "load_vlm_weights": False}
    config = SmolVLAConfig(**{**settings, "vlm_model_name": str(folder / "vlm")} | options)
    return SmolVLAPolicy(config), *make_smolvla_pre_post_processors(config, statistics())


def _smolvlm_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<image>"]
    special += ["<fake_token_around_image>", "<global-img>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        TEXTS * 3, trainers.BpeTrainer(vocab_size=360, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        extra_special_tokens={
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "image_token": "<image>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
    )


@contextmanager
def fixed_draws(policy: Any, noise: torch.Tensor, time: torch.Tensor) -> Iterator[None]:
    """LeRobot's training loss with this noise (b, h, a) and these times (b)."""
    before = policy.model.sample_noise, policy.model.sample_time
    policy.model.sample_noise, policy.model.sample_time = lambda *_: noise, lambda *_: time
    yield
    policy.model.sample_noise, policy.model.sample_time = before

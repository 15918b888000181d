"""OpenFlamingo's names onto ours: every weight arrives where its computation is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_cross_attention import CLIP
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from vla.errors import InputError
from vla.models.backbones.openflamingo import load, rename

WORDS = 120
ROWS = WORDS + 3
"""With those for the end of a chunk, an image, and padding."""
MEDIA, HIDDEN, INNER, LATENTS = 16, 32, 512, 5
LANGUAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": ("gpt_neox.layers", {"hidden_size": HIDDEN, "num_hidden_layers": 4, "num_attention_heads": 4}),
    "mpt": ("transformer.blocks", {"d_model": HIDDEN, "n_layers": 4, "n_heads": 4, "max_seq_len": 64}),
    "llama": ("model.layers", {"hidden_size": HIDDEN, "num_hidden_layers": 4, "num_attention_heads": 4}),
}


def feed_forward(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.0.weight": (width,),
        f"{name}.0.bias": (width,),
        f"{name}.1.weight": (4 * width, width),
        f"{name}.3.weight": (width, 4 * width),
    }


def released(layers: str, every: int) -> dict[str, Tensor]:
    """A state dict of the names and shapes of a released checkpoint, but small."""
    shapes: dict[str, tuple[int, ...]] = {"perceiver.latents": (LATENTS, MEDIA)}
    for norm in ("norm", *(f"layers.{i}.0.norm_{which}" for i in range(2) for which in ("media", "latents"))):
        shapes |= {f"perceiver.{norm}.weight": (MEDIA,), f"perceiver.{norm}.bias": (MEDIA,)}
    for i in range(2):
        name = f"perceiver.layers.{i}"
        shapes |= {f"{name}.0.to_q.weight": (INNER, MEDIA), f"{name}.0.to_kv.weight": (2 * INNER, MEDIA)}
        shapes |= {f"{name}.0.to_out.weight": (MEDIA, INNER), **feed_forward(f"{name}.1", MEDIA)}
    for i in range(every - 1, 4, every):
        name = f"lang_encoder.{layers}.{i}.gated_cross_attn_layer"
        shapes |= {f"{name}.attn_gate": (1,), f"{name}.ff_gate": (1,), **feed_forward(f"{name}.ff", HIDDEN)}
        shapes |= {f"{name}.attn.norm.weight": (HIDDEN,), f"{name}.attn.norm.bias": (HIDDEN,)}
        shapes |= {f"{name}.attn.to_q.weight": (INNER, HIDDEN), f"{name}.attn.to_kv.weight": (2 * INNER, MEDIA)}
        shapes |= {f"{name}.attn.to_out.weight": (HIDDEN, INNER)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def save_parts(folder: Path, language: str, values: dict[str, Any]) -> None:
    """A CLIP and a language model with its tokenizer, as transformers saves them."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    made: Any = CLIPVisionConfig
    CLIPVisionModel(made(**{k: v for k, v in CLIP.items() if k != "model_type"})).save_pretrained(folder / "clip")
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    config = AutoConfig.for_model(language, vocab_size=128, **special, **values)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "language")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2").save_pretrained(folder / "language")


@pytest.mark.parametrize(("language", "every"), [("gpt_neox", 2), ("mpt", 4), ("llama", 1)])
@torch.no_grad()
def test_every_weight_has_its_place(tmp_path: Path, language: str, every: int) -> None:
    layers, values = LANGUAGES[language]
    save_parts(tmp_path, language, values)
    weights = released(layers, every)
    embedding = {"gpt_neox": "gpt_neox.embed_in", "mpt": "transformer.wte", "llama": "model.embed_tokens"}[language]
    weights[f"lang_encoder.{embedding}.weight"] = torch.randn(ROWS, HIDDEN)
    torch.save(weights, tmp_path / "checkpoint.pt")
    backbone, processor = load(tmp_path / "checkpoint.pt", str(tmp_path / "clip"), str(tmp_path / "language"))
    assert processor.text_vocab == processor.tokenizer.get_vocab_size() == backbone.vocab_size == ROWS
    assert backbone.image_token_id == processor.tokenizer.token_to_id("<image>") == processor.image == WORDS + 1
    assert torch.equal(backbone.embed_tokens(torch.arange(ROWS)[None])[0], weights[f"lang_encoder.{embedding}.weight"])
    arrived = {id(t) for n, t in backbone.named_parameters() if not n.startswith(("vision.", "language."))}
    assert len(arrived) == len(weights) - 1
    name = f"lang_encoder.{layers}.{every - 1}.gated_cross_attn_layer"
    backbone, weights = backbone.double(), {key: weight.double() for key, weight in weights.items()}
    x, media = torch.randn(2, 3, HIDDEN).double(), torch.randn(2, 1, LATENTS, MEDIA).double()
    block = backbone.blocks[0]
    keys = block.attention.keys(media[:, 0])
    torch.testing.assert_close(block(x, keys, None), gated(x, media[:, 0], weights, name), atol=1e-4, rtol=1e-4)
    features = torch.randn(2, 4, MEDIA).double()
    torch.testing.assert_close(backbone.connector(features), resampled(features, weights), atol=1e-4, rtol=1e-4)


def attended(queries: Tensor, source: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    """Eight heads of 64, written out."""
    q, k, v = (
        t.unflatten(-1, (8, 64)).transpose(1, 2)
        for t in (
            queries @ weights[f"{name}.to_q.weight"].T,
            *(source @ weights[f"{name}.to_kv.weight"].T).chunk(2, -1),
        )
    )
    seen = (q @ k.transpose(2, 3) / 8).softmax(-1) @ v
    return seen.transpose(1, 2).flatten(2) @ weights[f"{name}.to_out.weight"].T


def normed(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    scaled = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def fed(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    inner = torch.nn.functional.gelu(normed(x, weights, f"{name}.0") @ weights[f"{name}.1.weight"].T)
    return inner @ weights[f"{name}.3.weight"].T


def gated(x: Tensor, media: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    seen = attended(normed(x, weights, f"{name}.attn.norm"), media, weights, f"{name}.attn")
    x = x + weights[f"{name}.attn_gate"].tanh() * seen
    return x + weights[f"{name}.ff_gate"].tanh() * fed(x, weights, f"{name}.ff")


def resampled(features: Tensor, weights: dict[str, Tensor]) -> Tensor:
    latents = weights["perceiver.latents"].expand(len(features), -1, -1)
    for i in range(2):
        name = f"perceiver.layers.{i}.0"
        queries = normed(latents, weights, f"{name}.norm_latents")
        source = torch.cat([normed(features, weights, f"{name}.norm_media"), queries], 1)
        latents = latents + attended(queries, source, weights, name)
        latents = latents + fed(latents, weights, f"perceiver.layers.{i}.1")
    return normed(latents, weights, "perceiver.norm")


def test_older_names_and_those_of_training_are_the_same() -> None:
    weights = released("model.layers", 2)
    older = {f"module.{n}".replace("model.layers.", "gated_cross_attn_layers."): w for n, w in weights.items()}
    older = {name.replace(".gated_cross_attn_layer.", "."): weight for name, weight in older.items()}
    (new, every), (old, same) = rename(weights), rename(older)
    assert every == same == 2
    assert {n: id(w) for n, w in new.items()} == {n: id(w) for n, w in old.items()}


def test_the_rest_of_the_language_model_keeps_its_names() -> None:
    layer, name = "lang_encoder.gpt_neox.layers.1", "attention.dense.weight"
    weights = released("gpt_neox.layers", 1) | {f"{layer}.decoder_layer.{name}": torch.ones(1)}
    weights["lang_encoder.old_decoder_blocks.1.attention.dense.weight"] = torch.zeros(1)
    assert rename(weights)[0][f"language.gpt_neox.layers.1.{name}"] == 1


@pytest.mark.parametrize("drop", ["perceiver.norm.bias", "lang_encoder.model.layers.3.gated_cross_attn_layer.ff_gate"])
def test_a_missing_weight_is_named(tmp_path: Path, drop: str) -> None:
    save_parts(tmp_path, *("llama", LANGUAGES["llama"][1]))
    weights = released("model.layers", 2)
    del weights[drop]
    torch.save({"model_state_dict": weights}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="1 missing, 0 unexpected"):
        load(tmp_path / "checkpoint.pt", str(tmp_path / "clip"), str(tmp_path / "language"))


def test_other_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no layer"):
        rename({"perceiver.latents": torch.ones(1)})
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path / "checkpoint.pt", "", "")

"""The client of hosted models against a real OpenAI-compatible server: `transformers serve` on a tiny checkpoint."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.utils.import_utils import is_serve_available

from vla.models.backbones.hosted import Hosted, Price

RED = np.full((6, 8, 3), (200, 10, 20), np.uint8)


def save_tiny_llava(folder: Path) -> None:
    """A LLaVA of random weights whose vocabulary are letters, with what `transformers serve` needs to talk to it."""
    inner = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    template = (
        "{% for m in messages %}{% for c in m.content %}"
        "{{ '<image>' if c.type == 'image' else c.text }}{% endfor %}{% endfor %}"
    )
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=28),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = {"model_type": "clip_vision_model", **sizes, "image_size": 28, "patch_size": 14}
    text = {"model_type": "llama", **sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 512}
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_token, image_seq_length=4)
    LlavaForConditionalGeneration(config).save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.skipif(not is_serve_available(), reason="needs transformers[serving]: fastapi, uvicorn, openai")
def test_against_transformers_serve(tmp_path: Path) -> None:
    folder, log = tmp_path / "tiny-llava", tmp_path / "serve.log"
    save_tiny_llava(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("w") as out:
        serving = subprocess.Popen([*command, *options], stdout=out, stderr=out)
    try:
        for _ in range(600):
            assert serving.poll() is None, log.read_text()
            try:
                httpx.get(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        model = Hosted(str(folder), f"http://127.0.0.1:{port}/v1", key_env=None, price=Price(1, 1), max_tokens=5)
        seen, again, blind = model.answer(["colour?", "colour?", "colour?"], [[RED], [RED], []])
        assert seen == again and seen.model == f"{folder}@main" and seen.finish == "length"
        assert seen.completion_tokens == 5 and len(seen.text) > 0
        assert seen.prompt_tokens == blind.prompt_tokens + 4  # the image's tokens
        assert model.usage.models == {f"{folder}@main": 3} and model.cost > 0
    finally:
        serving.terminate()
        serving.wait(timeout=20)

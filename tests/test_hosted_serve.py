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
from released_checkpoints import save_released
from transformers.utils.import_utils import is_serve_available

from vla.models.backbones.hosted import Hosted, Price

RED = np.full((6, 8, 3), (200, 10, 20), np.uint8)


@pytest.mark.slow
@pytest.mark.skipif(not is_serve_available(), reason="needs transformers[serving]: fastapi, uvicorn, openai")
def test_against_transformers_serve(tmp_path: Path) -> None:
    folder, log = tmp_path / "tiny-llava", tmp_path / "serve.log"
    save_released("llava-1.5", folder)
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
        # Of the image 4, a line break, and a space that joins no letter behind it.
        assert seen.prompt_tokens == blind.prompt_tokens + 6
        assert model.usage.models == {f"{folder}@main": 3} and model.cost > 0
    finally:
        serving.terminate()
        serving.wait(timeout=20)

"""`vla serve` from its command line to SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TOY

from vla.cli import main
from vla.policies.remote import RemotePolicy
from vla.types import Observation


def test_serves_a_checkpoint_until_sigterm(
    make_model: Callable[..., Any], make_episode: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "policy").mkdir()
    make_model().save(tmp_path / "policy")
    command = [sys.executable, "-m", "vla", "serve", f"policy={tmp_path / 'policy'}", "port=0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"VLA_API_KEY": ""})
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        remote = RemotePolicy(url, timeout=60, embodiment=TOY, statistics_hash="none")
        episode = make_episode()
        images = {name: frames[0] for name, frames in episode.images.items()}
        chunk = remote.predict(Observation(images, episode.state[0], episode.instruction, 1.5))
        assert chunk is not None and chunk.actions.shape == (4, 3) and chunk.start == 1.5
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
        remote.close()
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["host=0.0.0.0"], "open to others"),
        (["port=70000"], "below 65536"),
        (["key_file=nowhere"], "key_file=nowhere"),
        ([], "no policy 'nowhere'"),
    ],
)
def test_wrong_options_end_at_once(
    options: list[str], error: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLA_API_KEY", raising=False)
    assert main(["serve", "policy=nowhere", *options]) == 2
    assert error in capsys.readouterr().err

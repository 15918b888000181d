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
from serving import PlainClient, message

from vla.commands.cli import main
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


HUNG = """
import threading
from types import SimpleNamespace
import vla.commands.serve
import vla.serving.server
from serving import Mark

spec = SimpleNamespace(name="arm", statistics_hash="")

class Hung(Mark):
    model = SimpleNamespace(processor=SimpleNamespace(robot=lambda name: spec))

    def predict_batch(self, observations, *, prefix=None):
        print("asked", flush=True)
        threading.Event().wait()

vla.commands.serve.load_realtime = lambda *_: Hung()
vla.serving.server.DRAIN = 0.1
vla.commands.serve.serve(
    policy="hung", embodiment=None, host="127.0.0.1", port=0, key_file=None, cameras=None, state=(), prompt="prompt",
    max_clients=2, max_mb=1,
)
"""


def test_a_policy_that_hangs_does_not_keep_the_server_from_ending() -> None:
    paths = os.pathsep.join((str(Path(__file__).parent), *sys.path))
    environment = os.environ | {"VLA_API_KEY": "", "PYTHONPATH": paths}
    server = subprocess.Popen([sys.executable, "-c", HUNG], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        with PlainClient(server.stdout.readline().split()[-1]) as robot:
            robot.send(message())
            assert server.stdout.readline() == "asked\n"
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 1
        assert "stopped without its answer" in server.stdout.read()
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

"""What `vla deploy` does around a run: where it begins, what it reports, how it says that it ended."""

from __future__ import annotations

import base64
import io
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import write_store
from PIL import Image
from so101_checkpoints import so101_model

from vla.commands import cli
from vla.commands.operation_checks import loop_config
from vla.common.start_region import StartRegion, thumbnail
from vla.control.events import EventLog
from vla.control.status import Status
from vla.control.status_page import status_page
from vla.control.tick import Source, Tick
from vla.errors import InputError
from vla.models.processor import Processor
from vla.models.robot_spec import RobotSpec
from vla.models.vla import VLA
from vla.policies.vla import VlaPolicy
from vla.robots.sim import SimRobot
from vla.training.demonstrations import Demonstrations, robot_specs
from vla.types import Episode


def test_a_checkpoint_says_where_its_demonstrations_begin(
    tmp_path: Path, make_episode: Callable[..., Episode], make_model: Callable[..., VLA]
) -> None:
    episodes = [make_episode(seed) for seed in range(30)]
    write_store(tmp_path / "a.zarr", episodes)
    demonstrations = Demonstrations.open(str(tmp_path / "a.zarr"))
    (spec,) = robot_specs([demonstrations], 4)
    assert spec.start is not None
    firsts = np.stack([episodes[i].state[0] for i in demonstrations.train_episodes])
    np.testing.assert_allclose(spec.start.median, np.median(firsts, axis=0), rtol=1e-6)
    assert set(spec.start.images) == set(episodes[0].embodiment.cameras)
    shown = Image.open(io.BytesIO(base64.b64decode(next(iter(spec.start.images.values())))))
    assert shown.size == (10, 8)
    model = make_model(robot=False)
    old = model.processor
    made = VLA(model.backbone, Processor(old.tokenizer, old.image_size, old.tokens_per_image, (spec,)))
    made.save_pretrained(tmp_path / "policy")
    policy = VlaPolicy.load(tmp_path / "policy")
    assert policy.data.start == spec.start and policy.data.action is not None and policy.data.state is not None
    states = np.concatenate([episodes[i].state for i in demonstrations.train_episodes])
    np.testing.assert_allclose(policy.data.state, [states.min(axis=0), states.max(axis=0)], rtol=1e-6)
    assert RobotSpec.from_dict(spec.to_dict() | {"start": None}).start is None  # of earlier checkpoints


@pytest.fixture
def starting(tmp_path: Path, make_model: Callable[..., VLA]) -> Path:
    """A checkpoint of the simulated arm whose demonstrations began elsewhere than its scenes do."""
    model = so101_model(make_model(robot=False))
    (spec,) = model.processor.robots
    place = tuple(0.2 + np.array([0.0, -1.5, 1.3, 0.9, -1.5, 0.1]))
    image = thumbnail(np.full((60, 80, 3), 200, np.uint8))
    start = StartRegion(place, place, place, {"front": image})
    old = model.processor
    processor = Processor(old.tokenizer, old.image_size, old.tokens_per_image, (replace(spec, start=start),))
    VLA(model.backbone, processor).save_pretrained(tmp_path / "policy")
    return tmp_path


def test_a_run_begins_and_ends_where_the_demonstrations_did(
    starting: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[np.ndarray] = []
    command = SimRobot.command
    monkeypatch.setattr(SimRobot, "command", lambda self, action: (told.append(action), command(self, action))[1])
    options = ["seconds=0.4", f"out={starting / 'out'}", "loop.end=home", "loop.slow=0.5", "status_port=0"]
    code = cli.main(["deploy", f"policy={starting / 'policy'}", *options])
    output = capfd.readouterr()
    assert code == 0, output
    assert "status: http://127.0.0.1:" in output.out and "moving slowly to the start pose: shoulder_pan" in output.err
    np.testing.assert_allclose(told[-1], 0.2 + np.array([0.0, -1.5, 1.3, 0.9, -1.5, 0.1]), atol=1e-3)
    report = json.loads((starting / "out" / "deploy.json").read_text())
    assert report["outcome"] == "done" and set(report["cameras"]) == {"front", "wrist"}
    assert report["events"][-1]["what"] == "ended: done" and report["seconds"] > 0.6
    page = (starting / "out" / "report.html").read_text()
    assert "moving slowly" in page and "repeated" in page
    look = Image.open(starting / "out" / "cameras.png").convert("RGB")
    assert look.width == 2 * (320 + 16)
    assert look.getpixel((160, 120)) == (200, 200, 200)  # the training data's image of the first camera


def test_what_the_operator_does_not_begin_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[np.ndarray] = []
    monkeypatch.setattr(SimRobot, "command", lambda self, action: told.append(action))
    monkeypatch.setattr("sys.stdin", io.StringIO("no\n"))
    assert cli.main(["deploy", "policy=hold", f"out={tmp_path / 'out'}", "confirm=true"]) == 3
    assert not told


def test_the_exit_code_says_who_ended_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ours, theirs = os.pipe()
    os.close(theirs)
    with os.fdopen(ours) as gone, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", gone)
        assert cli.main(["deploy", "policy=hold", f"out={tmp_path / 'out'}"]) == 3
    assert "the run ended: the operator is gone" in capfd.readouterr().err


def test_home_needs_a_policy_that_knows_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["deploy", "policy=hold", f"out={tmp_path / 'out'}", "loop.end=home"]) == 2
    assert "has no start pose of its demonstrations" in capfd.readouterr().err


def test_a_server_may_be_lost_for_longer_than_a_policy_may_think() -> None:
    assert loop_config({}, "ws://host:8000", 10.0).inference_timeout_s == 10
    assert loop_config({"inference_timeout_s": 20.0}, "wss://host:8000", 10.0).inference_timeout_s == 20
    assert loop_config({}, "outputs/train", 10.0).inference_timeout_s == 2


def tick(time: float, source: Source = "chunk") -> Tick:
    sent = np.zeros(2)
    return Tick(time, time, sent, None, sent, sent, (), source, None, 0.05 if source == "chunk" else None, 0.0, 7)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_status_shows_rate_delay_queue_and_holds_and_each_warning_once(monkeypatch: pytest.MonkeyPatch) -> None:
    events, out = EventLog(), Terminal()
    monkeypatch.setattr("sys.stderr", out)
    monkeypatch.setenv("COLUMNS", "60")
    with Status(events) as status:
        assert status.snapshot() is None
        for step in range(51):
            status(tick(3.0 + step / 50, "hold" if step < 5 else "chunk"))
        events.add(0.5, "robot: mute", warning=True)
        events.add(0.6, "clamped: velocity")
    now = status.snapshot()
    assert now is not None and (now.rate, now.queue, now.holds) == (pytest.approx(50), 7, 5)
    assert out.getvalue().count("0.5 s: robot: mute\n") == 1 and "clamped" not in out.getvalue()
    assert "50.0 Hz  delay 50 ms  queue 7  held 5  c" in out.getvalue()
    assert "last: robot: mute" in now.line() and max(map(len, out.getvalue().split("\x1b[K"))) <= 60


def test_the_status_is_on_a_page_of_this_machine() -> None:
    status = Status(EventLog())
    status(tick(1.0))
    with status_page(status, 0) as address:
        assert address is not None and address.startswith("http://127.0.0.1:")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert b"<title>vla deploy" in opener.open(address).read()
        now = json.loads(opener.open(f"{address}/status.json").read())
        assert now["now"]["queue"] == 7 and now["events"] == []
        with pytest.raises(urllib.error.HTTPError, match="404"):
            opener.open(f"{address}/../secret")
        with pytest.raises(InputError, match="choose another"), status_page(status, int(address.rsplit(":", 1)[1])):
            pass
    with status_page(status, None) as none:
        assert none is None

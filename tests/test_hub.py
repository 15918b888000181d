"""A checkpoint as others get it: saved with its card, loaded by name, pushed to the hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import yaml

from vla.commands import cli
from vla.errors import InputError
from vla.models.hub import FILES, LEROBOT_FILES, card, fetch, parameters
from vla.models.vla import VLA
from vla.policies.load import load_policy

Make = Callable[..., VLA]


def same_weights(one: VLA, other: VLA) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_what_is_saved_is_loaded_and_says_what_it_is(make_model: Make, tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path / "new" / "policy", license="apache-2.0")
    folder = tmp_path / "new" / "policy"
    assert {file.name for file in folder.iterdir()} == {*FILES, *LEROBOT_FILES, "README.md"}
    assert same_weights(VLA.from_pretrained(folder), model)
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    values = yaml.safe_load(front)
    assert (values["license"], values["library_name"], values["pipeline_tag"]) == ("apache-2.0", "vla", "robotics")
    assert {"robotics", "lerobot"} <= set(values["tags"])
    for said in ("Drives toy", "front, wrist", "lift [rad]", "4 actions, 10 a second", "language llama", "parallel"):
        assert said in body
    assert "held-out data" not in body
    assert parameters(folder / "model.safetensors") == sum(t.numel() for t in model.state_dict().values())
    with pytest.raises(InputError, match="is not empty"):
        model.save_pretrained(folder)


def test_a_card_tells_the_scores_of_the_checkpoint_itself(make_model: Make, tmp_path: Path) -> None:
    make_model().save(tmp_path)
    scores = [{"step": 5, "action_error": 0.5, "vqa": 0.1}, {"step": 10, "action_error": 0.25, "vqa": 0.75}]
    (tmp_path / "training.json").write_text(json.dumps({"step": 10, "evaluations": scores, "tokens": {}}))
    text = card(tmp_path)
    assert "after 10 steps" in text and "| action_error | 0.25 |" in text and "0.5 |" not in text


def test_a_model_without_a_robot_has_a_card_too(make_model: Make, tmp_path: Path) -> None:
    make_model(robot=False).save_pretrained(tmp_path / "vlm")
    text = (tmp_path / "vlm" / "README.md").read_text()
    assert "image-text-to-text" in text and "drives no robot" in text and "VlaPolicy" not in text


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the hub cannot be reached"):
        VLA.from_pretrained("nobody/nothing")
    with pytest.raises(InputError, match="the hub cannot be reached"):
        load_policy("hub:nobody/nothing")
    with pytest.raises(InputError, match="neither a folder nor a model of the hub"):
        fetch("outputs/a/b")
    with pytest.raises(InputError, match=r"config\.json is missing"):
        VLA.from_pretrained(tmp_path)


@pytest.fixture
def run_folder(make_model: Make, tmp_path: Path) -> Path:
    """A training's folder, its checkpoint of before LeRobot's files were written."""
    step = tmp_path / "train" / "step-00000010"
    step.mkdir(parents=True)
    make_model().save(step)
    for name in LEROBOT_FILES:
        (step / name).unlink()
    config = json.loads((step / "config.json").read_text())
    del config["type"]
    (step / "config.json").write_text(json.dumps(config))
    (step / "training.safetensors").write_bytes(b"not for others")
    (step.parent / "best").symlink_to(step.name)
    return step.parent


def test_dry_run_tells_files_and_card_and_sends_nothing(
    run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vla.commands.push._upload", lambda *_: pytest.fail("it uploads"))
    assert cli.main(["push", f"policy={run_folder}", "repo=someone/pick", "dry_run=true", "license=mit"]) == 0
    out = capsys.readouterr().out
    weights = (run_folder / "best" / "model.safetensors").stat().st_size
    assert f"{weights:,}  model.safetensors" in out and ": 7 files" in out and "training.safetensors" not in out
    assert "license: mit" in out and 'from_pretrained("someone/pick")' in out and "Nothing was uploaded" in out


def test_wrong_names_are_told(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, reason in (
        ([f"policy={run_folder}"], "set repo=…"),
        ([f"policy={run_folder}", "repo=alone"], "user/model"),
        (["policy=nowhere", "repo=a/b"], "no folder nowhere"),
        ([f"policy={run_folder.parent}", "repo=a/b"], "config.json is missing"),
    ):
        assert cli.main(["push", *arguments]) == 2
        assert reason in capsys.readouterr().err


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files needs. The commit's lines are kept."""

    commit: list[dict[str, Any]] = []
    visibility = ""
    refuses = False

    def log_message(self, *_: Any) -> None:
        """Silent."""

    def _reply(self, values: Any, status: int = 200) -> None:
        body = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._reply({"id": "someone/pick", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.refuses:
            self._reply({"error": "Invalid username or password."}, 401)
        elif self.path.endswith("/repos/create"):
            Hub.visibility = json.loads(body)["visibility"]
            self._reply({"url": f"{self.server.url}/someone/pick", "name": "someone/pick"})  # type: ignore[attr-defined]
        elif "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            self._reply({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in files]})
        elif "/commit/" in self.path:
            Hub.commit = [json.loads(line) for line in body.splitlines()]
            url = f"{self.server.url}/someone/pick/commit/{'1' * 40}"  # type: ignore[attr-defined]
            self._reply({"success": True, "commitOid": "1" * 40, "commitUrl": url})
        else:
            self._reply({"valid": True, "message": ""})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on this machine, which `HfApi` talks to for the length of a test."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)  # type: ignore[attr-defined]
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr(Hub, "refuses", False)
    yield Hub
    server.shutdown()
    server.server_close()
    thread.join()


def test_push_uploads_what_the_dry_run_tells(run_folder: Path, hub: type[Hub]) -> None:
    assert cli.main(["push", f"policy={run_folder}", "repo=someone/pick"]) == 0
    assert hub.visibility == "private"
    files = {line["value"]["path"]: line["value"] for line in hub.commit if line["key"] == "file"}
    assert files.keys() == {*FILES, *LEROBOT_FILES, "README.md"}


def test_a_refusal_is_one_line(run_folder: Path, hub: type[Hub], capsys: pytest.CaptureFixture[str]) -> None:
    hub.refuses = True
    assert cli.main(["push", f"policy={run_folder}", "repo=someone/pick"]) == 2
    assert "the hub refuses someone/pick: Invalid username or password.; log in" in capsys.readouterr().err


def test_no_network_is_one_line(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["push", f"policy={run_folder}", "repo=someone/pick"]) == 2
    assert "the hub cannot be reached" in capsys.readouterr().err

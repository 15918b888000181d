"""What goes on where it was cut off belongs to the weights: a copy goes on, further training begins anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from released_checkpoints import save_released
from test_benchmark_run import Seeing, data

from vla.commands import cli
from vla.errors import InputError
from vla.evaluation.rollouts.result_store import check_folder
from vla.evaluation.vlm import answerer
from vla.evaluation.vlm.answerer import BackboneAnswerer
from vla.evaluation.vlm.benchmark_run import read_answers
from vla.models.hub import weights_digest
from vla.models.vla import VLA
from vla.policies.load import weights_of_policy
from vla.training import stage_report
from vla.training.stage_report import DRAWS, StageReport

__all__ = ["data"]
Models = Callable[..., VLA]


@pytest.fixture
def policy(make_model: Models, tmp_path: Path) -> Path:
    make_model(robot=False).save_pretrained(tmp_path / "run" / "step-00000001")
    (tmp_path / "run" / "best").symlink_to("step-00000001")
    return tmp_path / "run"


def train_on(policy: Path, make_model: Models, seed: int = 7) -> None:
    shutil.rmtree(policy / "step-00000001")
    make_model(robot=False, seed=seed).save_pretrained(policy / "step-00000001")


def test_the_digest_is_of_what_answers_follow_from(policy: Path, tmp_path: Path) -> None:
    one = weights_digest(policy / "best")
    shutil.copytree(policy / "best", tmp_path / "copy")
    (tmp_path / "copy" / "training.json").write_text("{}")
    (tmp_path / "copy" / "README.md").write_text("other words")
    assert weights_digest(tmp_path / "copy") == one
    for name in ("model.safetensors", "config.json", "processor.json", "tokenizer.json"):
        other = tmp_path / name.replace(".", "-")
        shutil.copytree(policy / "best", other)
        content = (other / name).read_bytes()
        (other / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert weights_digest(other) != one


def test_a_policy_has_the_digest_of_its_weights_wherever_they_lie(policy: Path, tmp_path: Path) -> None:
    one = weights_digest(policy / "best")
    (tmp_path / "act" / "checkpoints" / "last").mkdir(parents=True)
    shutil.copytree(policy / "best", tmp_path / "act" / "checkpoints" / "last" / "pretrained_model")
    for name in (policy, policy / "best", f"hub:{policy}", f"lerobot:{tmp_path / 'act'}"):
        assert weights_of_policy(str(name)) == one
    assert weights_of_policy("expert") is None and weights_of_policy("hold") is None


def test_a_benchmark_asks_again_after_further_training_and_knows_earlier_weights_again(
    data: Path,
    policy: Path,
    make_model: Models,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seeing: list[Seeing] = []

    class Wrong(Seeing):
        def __call__(self, questions: Sequence[str], *rest: Any) -> list[str]:
            return ["no"] * len(super().__call__(questions, *rest))

    def run(kind: type[Seeing]) -> float:
        seeing.append(kind())
        monkeypatch.setattr(answerer, "open_answerer", lambda _: seeing[-1])
        out = tmp_path / "out"
        assert cli.main(["benchmark", "pope", f"data={data / 'pope'}", f"policy={policy}", f"out={out}"]) == 0
        scores: dict[str, Any] = json.loads((out / "pope" / "scores.json").read_text())["scores"]
        return float(scores["accuracy"]["value"])

    assert run(Wrong) == 0 and run(Seeing) == 0 and not seeing[-1].asked  # goes on where all is done
    first = (tmp_path / "out/pope/answers.jsonl").read_text()
    assert "are kept" not in capsys.readouterr().out
    train_on(policy, make_model)
    assert run(Seeing) == 1 and len(seeing[-1].asked) == 2
    (kept,) = (tmp_path / "out/pope").glob("answers-*.jsonl")
    assert kept.read_text() == first and f"answers of other weights are kept as {kept.name}" in capsys.readouterr().out
    assert set(read_answers(tmp_path / "out/pope/answers.jsonl")) == {"1", "2"}
    train_on(policy, make_model, seed=0)  # the first ones again
    assert run(Seeing) == 0 and not seeing[-1].asked


def test_a_benchmark_asks_again_when_its_questions_change(
    data: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "pope", tmp_path / "out"
    shutil.copytree(data / "pope", folder)
    seeing = Seeing()
    monkeypatch.setattr(answerer, "open_answerer", lambda _: seeing)
    command = ["benchmark", "pope", f"data={folder}", f"policy={policy}", f"out={out}"]
    assert cli.main(command) == 0 and len(seeing.asked) == 2
    file = folder / "coco_pope_random.json"
    file.write_text(file.read_text().replace("a red?", "a big red?"))
    assert cli.main(command) == 0 and len(seeing.asked) == 4


def replaced(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


CHANGES = {
    "tiles": ("processor_config.json", '"max_patches": 12', '"max_patches": 3'),
    "image size": ("processor_config.json", '"height": 28,\n      "width": 28', '"height": 14,\n      "width": 14'),
    "normalisation": ("processor_config.json", "0.485", "0.1"),
    "prompt": ("chat_template.jinja", "<|im_start|>{{", "<|im_start|>now {{"),
}
"""Files of a released checkpoint beside its weights, and what is replaced in them by what."""


@pytest.mark.parametrize("change", CHANGES)
def test_a_benchmark_asks_again_when_the_preprocessing_changes(
    change: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_released("internvl-3", tmp_path / "model")
    out = tmp_path / "out"
    command = ["benchmark", "pope", f"data={data / 'pope'}", f"policy={tmp_path / 'model'}", f"out={out}"]
    assert cli.main(command) == 0
    first = (out / "pope/answers.jsonl").read_text()
    file, *texts = CHANGES[change]
    replaced(tmp_path / "model" / file, *texts)
    assert cli.main(command) == 0
    (kept,) = (out / "pope").glob("answers-*.jsonl")
    assert kept.read_text() == first
    assert "answers of other preprocessing are kept" in capsys.readouterr().out
    assert set(read_answers(out / "pope/answers.jsonl")) == {"1", "2"}
    # The first ones again: their answers are there, and none is asked for.
    replaced(tmp_path / "model" / file, *reversed(texts))
    monkeypatch.setattr(BackboneAnswerer, "__call__", lambda *_: pytest.fail("asked"))
    assert cli.main(command) == 0
    assert (out / "pope/answers.jsonl").read_text() == first


def test_a_benchmark_asks_again_when_an_image_changes(
    data: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seeing = tmp_path / "pope", Seeing()
    shutil.copytree(data / "pope", folder)
    monkeypatch.setattr(answerer, "open_answerer", lambda _: seeing)
    command = ["benchmark", "pope", f"data={folder}", f"policy={policy}", f"out={tmp_path / 'out'}"]
    assert cli.main(command) == 0
    (image,) = folder.glob("val2014/*")
    shutil.copy(folder / "other/other.png", image)
    assert cli.main(command) == 0
    assert [shown for _, shown in seeing.asked] == [["red"], ["red"], ["blue"], ["blue"]]


def test_an_evaluation_of_other_weights_is_refused(tmp_path: Path) -> None:
    settings = {"policy": "outputs/train", "weights": "a", "task": "pick"}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    check_folder(tmp_path, settings)
    with pytest.raises(InputError, match="of other weights: the policy was trained on since"):
        check_folder(tmp_path, settings | {"weights": "b"})


def test_a_stage_is_measured_again_when_its_weights_change(
    policy: Path, make_model: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def open_answerer(name: str) -> None:
        measured.append(name)
        raise KeyboardInterrupt

    monkeypatch.setattr(stage_report, "open_answerer", open_answerer)
    monkeypatch.setattr(StageReport, "_write", lambda _: tmp_path)
    stages = {"align": {"weights": weights_digest(policy / "best"), "probes": {}}}
    (tmp_path / "stages.json").write_text(json.dumps({"scenes": {}, "stores": {}, "stages": stages}))
    (tmp_path / "align").mkdir()
    np.savez(tmp_path / "align" / DRAWS)
    StageReport(tmp_path, {}, {}).add("align", str(policy))
    assert measured == []
    train_on(policy, make_model)
    with pytest.raises(KeyboardInterrupt):
        StageReport(tmp_path, {}, {}).add("align", str(policy))
    assert measured == [str(policy)]

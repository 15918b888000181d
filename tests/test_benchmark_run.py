"""`vla benchmark`: official files and their images, the official prompts, and runs that go on."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from test_hosted import Server, completion, server

from vla.commands import cli
from vla.common.stored_image import Views
from vla.errors import InputError
from vla.evaluation.vlm.answerer import HostedAnswerer, open_answerer
from vla.evaluation.vlm.benchmark_run import Files, read_answers, subsample
from vla.evaluation.vlm.scoring.registry import BENCHMARKS
from vla.evaluation.vlm.scoring.vqa import SHORT

__all__ = ["server"]
TEN = ["red"] * 10
SHADES = {"red": (200, 0, 0), "blue": (0, 0, 200)}


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), SHADES[color]).save(buffer, "png")
    return buffer.getvalue()


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, bytes):
        path.write_bytes(value)
    else:
        path.write_text(value if isinstance(value, str) else json.dumps(value))


def tsv(*rows: Sequence[object]) -> str:
    return "\n".join("\t".join(map(str, row)) for row in rows) + "\n"


def mmbench() -> str:
    """The second question's image is in the row of the first, as that of each rotation is."""
    rows: list[Sequence[object]] = [("index", "question", "hint", "A", "B", "answer", "category", "image")]
    for k in range(2):
        answer = "AB"[k]
        options = ("red", "blue") if k == 0 else ("blue", "red")
        image = base64.b64encode(png("red")).decode() if k == 0 else "5"
        rows.append((5 + k * 10**6, "color?", "", *options, answer, "color", image))
    return tsv(*rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a benchmark, each with questions about a red image named as it officially is, and a blue one."""
    home = tmp_path_factory.mktemp("data")
    choices = {f"choice_{x}": text for x, text in zip("abcd", ("red", "blue", "tie", "bus"), strict=True)}
    vista = {"pid": "1", "question": "color?", "image": "images/1.jpg", "choices": ["red", "blue"], "unit": None}
    vista |= {"precision": None, "answer": "red", "question_type": "multi_choice", "answer_type": "text"}
    note = {"image_id": 42, "question_id": 420, "answers": [{"answer": a} for a in TEN], "answer_type": "other"}
    ocr = {"dataset_name": "SVT", "type": "Scene", "question": "color?", "answers": ["red"], "image_path": "SVT/1.jpg"}
    coco = "COCO_val2014_000000000042.png"
    seed = {"question_id": "7", "question": "color?", "answer": "A", "question_type_id": 1, "data_id": "99_1"}
    video = seed | {"question_id": "8", "data_type": "video", "data_id": "none.mp4"} | choices
    pope = [{"question_id": i, "image": coco, "text": t, "label": "yes"} for i, t in ((1, "a red?"), (2, "red?"))]
    boxes = {"annotations": [{"image_id": 42, "category_id": 1}], "categories": [{"id": 1, "name": "dog"}]}
    files: dict[str, dict[str, Any]] = {
        "vqav2": {
            "v2_mscoco_val2014_annotations.json": {"annotations": [note | {"question_type": "what"}]},
            "v2_OpenEnded_mscoco_val2014_questions.json": {
                "questions": [{"image_id": 42, "question_id": 420, "question": "color?"}]
            },
            f"val2014/{coco}": png("red"),
        },
        "textvqa": {
            "TextVQA_0.5.1_val.json": {
                "data": [{"question_id": 3, "question": "color?", "answers": TEN, "image_id": "003a8ae2ef43b901"}]
            },
            "train_images/003a8ae2ef43b901.png": png("red"),
        },
        "docvqa": {
            "val_v1.0_withQT.json": {
                "data": [{"questionId": 4, "question": "color?", "answers": ["red"], "image": "documents/x_1.png"}]
            },
            "documents/x_1.png": png("red"),
        },
        "chartqa": {
            "test_human.json": [{"imgname": "1.png", "query": "color?", "label": "red"}],
            "test_augmented.json": [{"imgname": "1.png", "query": "which color?", "label": "red"}],
            "png/1.png": png("red"),
        },
        "mme": {
            "lines/existence.txt": tsv(("1.jpg", "red? Please answer yes or no.", "Yes"), ("1.jpg", "blue?", "No")),
            "lines/color.txt": tsv(("1.jpg", "red? Please answer yes or no.", "Yes"), ("1.jpg", "a blue?", "No")),
            "existence/1.jpg": png("red"),
            "color/images/1.jpg": png("red"),
        },
        "mmbench": {"mmbench_dev_en.tsv": mmbench()},
        "seed-bench": {
            "SEED-Bench.json": {"questions": [seed | {"data_type": "image"} | choices, video]},
            "SEED-Bench-image/99_1": png("red"),
            "SEED-Bench-image/99_1.png": png("red"),
        },
        "mathvista": {"testmini.json": {"1": vista}, "images/1.jpg": png("red")},
        "ocrbench": {"OCRBench.json": [ocr], "OCRBench_Images/SVT/1.jpg": png("red")},
        "chair": {
            "synonyms.txt": "dog, puppy\n",
            "captions_val.json": {"annotations": [{"image_id": 42, "caption": "a dog"}]},
            "instances_val.json": boxes,
            f"val2014/{coco}": png("red"),
        },
        "pope": {
            "coco_pope_random.json": "\n".join(map(json.dumps, pope)),
            f"val2014/{coco}": png("red"),
        },
    }
    for name, held in files.items():
        for path, value in held.items():
            write(home / name / path, value)
        write(home / name / "other/other.png", png("blue"))
    rows = [
        {"id": f"validation_Art_{i}", "question": "<image 1> <image 2>", "options": "['red', 'blue']", "answer": "A"}
        | {"question_type": "multiple-choice", "image_1": {"bytes": png("red")}, "image_2": {"bytes": png("blue")}}
        for i in (1, 2)
    ]
    for subject in ("Art", "Music"):
        (home / "mmmu" / subject).mkdir(parents=True)
        named = [row | {"id": str(row["id"]).replace("Art", subject)} for row in rows]
        parquet.write_table(pa.Table.from_pylist(named), home / "mmmu" / subject / "validation-00000-of-00001.parquet")
    return home


class Seeing:
    """Says what color the first image is, in the form that the question asks for; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []
        self.fail_after = 10**9

    def __call__(self, questions: Sequence[str], images: Sequence[Views], tokens: int, role: str) -> list[str]:
        assert role == "plain"
        answers = []
        for question, views in zip(questions, images, strict=True):
            shown = ["red" if view[0, 0, 0] > view[0, 0, 2] else "blue" for view in views.values()]
            self.asked.append((question, shown))
            if len(self.asked) > self.fail_after:
                raise RuntimeError("killed")
            said = shown[0] if "?" in question and "red?" not in question and "blue?" not in question else "yes"
            said = "no" if "blue?" in question else said
            option = next((line for line in question.split("\n") if line[1:].startswith(f". {shown[0]}")), "")
            answers.append(option[:1] or ("(A)" if "(A)" in question else said))
        return answers


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_official_files_are_found_asked_and_scored(name: str, data: Path) -> None:
    files, seeing = Files.open(name, data / name), Seeing()
    report = files.run(seeing)
    assert len(seeing.asked) == len(files.questions)
    assert all(shown == (["red", "blue"] if name == "mmmu" else ["red"]) for _, shown in seeing.asked)
    main, score = next(iter(report["scores"].items()))
    best = {"mme": 400.0, "chair": 0.0}.get(name, 1.0)
    assert score["value"] == best, main


def test_the_prompt_is_the_official_one(data: Path) -> None:
    seeing = Seeing()
    Files.open("vqav2", data / "vqav2").run(seeing)
    Files.open("mme", data / "mme").run(seeing)
    assert seeing.asked[0][0] == f"color?\n{SHORT}" and "red? Please answer yes or no." in [q for q, _ in seeing.asked]


def test_a_run_that_was_cut_off_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vla.evaluation.vlm.benchmark_run.ROWS", 1)
    files, ledger, seeing = Files.open("mmbench", data / "mmbench"), tmp_path / "answers.jsonl", Seeing()
    seeing.fail_after = 1
    with pytest.raises(RuntimeError, match="killed"):
        files.run(seeing, ledger)
    assert len(read_answers(ledger)) == 1
    ledger.write_text(ledger.read_text() + '\n{"question_id": "1000005", "answ')  # killed while writing
    again = Seeing()
    report = files.run(again, ledger)
    assert len(again.asked) == 1 and report["scores"]["circular_accuracy"]["value"] == 1
    idle = Seeing()
    assert files.run(idle, ledger) == report and not idle.asked


def test_a_part_keeps_pairs_and_rotations_whole(data: Path) -> None:
    assert len(Files.open("mme", data / "mme", limit=1).questions) == 2
    assert len(Files.open("mmbench", data / "mmbench", limit=1).questions) == 2
    many: Mapping[str, Mapping[str, Any]] = {str(i): {"question": "?"} for i in range(100)}
    assert list(subsample(many, 4)) == ["0", "33", "66", "99"] and subsample(many, 1000) == many


def test_what_is_missing_is_said_before_anything_is_asked(data: Path, tmp_path: Path) -> None:
    for name, pattern in {"pope": "coco_pope", "vqav2": "annotations", "mmmu": "parquet", "chair": "synonyms"}.items():
        with pytest.raises(InputError, match=pattern):
            Files.open(name, tmp_path)
    entry = {"question_id": 1, "image": "lost.jpg", "text": "?", "label": "yes"}
    write(tmp_path / "coco_pope_random.json", json.dumps(entry))
    with pytest.raises(InputError, match="no image lost.jpg"):
        Files.open("pope", tmp_path)
    write(tmp_path / "a/lost.jpg", png("red"))
    assert len(Files.open("pope", tmp_path).questions) == 1
    write(tmp_path / "b/lost.jpg", png("red"))
    with pytest.raises(InputError, match="or several"):
        Files.open("pope", tmp_path)
    write(tmp_path / "coco_pope_popular.json", json.dumps(entry | {"image": "a/lost.jpg"}))
    with pytest.raises(InputError, match="has several: set data to one of"):
        Files.open("pope", tmp_path)
    assert len(Files.open("pope", tmp_path / "coco_pope_popular.json").questions) == 1
    write(tmp_path / "a/lost.jpg", b"no picture")
    with pytest.raises(InputError, match="cannot read the image"):
        Files.open("pope", tmp_path / "coco_pope_popular.json").run(Seeing())
    with pytest.raises(InputError, match="no field"):
        Files.open("docvqa", tmp_path / "coco_pope_popular.json")


def test_a_hosted_model_is_told_the_official_prompt_alone(
    data: Path, tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server.replies = [completion("red", "my-model")]
    policy = f"policy=hosted:my-model@http://127.0.0.1:{server.server_port}/v1"
    out = tmp_path / "out"
    arguments = ["benchmark", "textvqa", f"data={data / 'textvqa'}", policy, f"out={out}"]
    assert cli.main(arguments) == 0
    assert "accuracy" in capsys.readouterr().out
    (content,) = [body["messages"][0]["content"] for _, body in server.seen]
    assert [part["text"] for part in content if part["type"] == "text"] == [f"color?\n{SHORT}"]
    assert json.loads((out / "textvqa/scores.json").read_text())["scores"]["accuracy"]["value"] == 1
    assert cli.main(arguments) == 0 and len(server.seen) == 1
    assert cli.main([*arguments[:3], "policy=nano", f"out={out}"]) == 2
    assert "another policy" in capsys.readouterr().err


def test_hosted_models_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    answerer = open_answerer("hosted:gpt-4o")
    assert isinstance(answerer, HostedAnswerer) and answerer.hosted.model.startswith("gpt-4o")
    with pytest.raises(InputError, match="is not a hosted model"):
        open_answerer("hosted:smolvlm2")


def test_a_checkpoint_answers(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["benchmark", "pope", f"data={data / 'pope'}", "policy=nano", f"out={tmp_path / 'out'}"]) == 0
    assert "yes_ratio" in capsys.readouterr().out
    assert set(read_answers(tmp_path / "out/pope/answers.jsonl")) == {"1", "2"}
    assert np.isfinite(json.loads((tmp_path / "out/pope/scores.json").read_text())["scores"]["f1"]["value"])

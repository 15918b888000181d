"""`vla score`: official files in, scores out; what holds for every benchmark."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from vla.commands import cli
from vla.commands.score import score
from vla.errors import InputError
from vla.evaluation.vlm.scoring.benchmark import resampled
from vla.evaluation.vlm.scoring.files import answers, entries
from vla.evaluation.vlm.scoring.registry import BENCHMARKS, benchmark

TEN = ["red"] * 6 + ["dark red"] * 4
CHOICES = {"choice_a": "cat", "choice_b": "dog", "choice_c": "bus", "choice_d": "tie"}
VISTA = {"question": "?", "choices": None, "unit": None, "precision": None, "question_type": "free_form"}
METADATA = {"language": "english", "skills": ["arithmetic", "logic"]}


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def lines(values: list[Any]) -> str:
    return "\n".join(json.dumps(value) for value in values)


def tsv(rows: list[list[str]]) -> str:
    return "\n".join("\t".join(row) for row in rows)


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A small official reference of every benchmark."""
    home = tmp_path_factory.mktemp("references")
    people = [{"answer": a, "answer_id": i} for i, a in enumerate(TEN)]
    notes = [{"question_id": i, "answers": people, "answer_type": "other", "question_type": "what"} for i in (1, 2)]
    rotated = [[str(5 + k * 10**6), "What?", "", *"wxyz", "ABCD"[k], "color", "fine", "aGk="] for k in range(4)]
    head = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category", "image"]
    mmmu = [
        {"id": f"validation_Art_{i}", "question": "<image 1>?", "options": "['cat', 'dog']", "answer": "B"}
        | {"question_type": "multiple-choice", "image_1": {"bytes": b"png"}}
        for i in (1, 2)
    ]
    ocr = {"dataset_name": "IIIT5K", "type": "Regular Text Recognition", "question": "?", "answers": ["a"]}
    coco = home / "chair"
    write(coco / "synonyms.txt", "dog, puppy\nbus\n")
    write(coco / "captions.json", {"annotations": [{"image_id": 9, "caption": "a bus"}]})
    boxes = {"annotations": [{"image_id": 9, "category_id": 1}], "categories": [{"id": 1, "name": "dog"}]}
    write(coco / "instances.json", boxes)
    write(home / "mme/count.txt", tsv([["1.jpg", "Two?", "Yes"], ["1.jpg", "Six?", "No"]]) + "\n")
    parquet.write_table(pa.Table.from_pylist(mmmu), home / "mmmu.parquet")
    vista = {str(i): VISTA | {"pid": str(i), "answer": "5", "answer_type": "integer"} for i in (1, 2)}
    return {
        "vqav2": write(home / "vqav2.json", {"info": {}, "annotations": notes}),
        "textvqa": write(home / "textvqa.json", {"data": [{"question_id": 3, "question": "?", "answers": TEN}]}),
        "docvqa": write(home / "docvqa.json", {"data": [{"questionId": 4, "question": "?", "answers": ["a b"]}]}),
        "chartqa": write(home / "chartqa.json", [{"imgname": "1.png", "query": "?", "label": "5"}] * 2),
        "mme": home / "mme",
        "mmbench": write(home / "mmbench.tsv", tsv([head, *rotated])),
        "seed-bench": write(
            home / "seed.json",
            {"questions": [CHOICES | {"question_id": "7", "question": "?", "answer": "A", "question_type_id": 1}]},
        ),
        "mmmu": home / "mmmu.parquet",
        "mathvista": write(home / "vista.json", {i: v | {"metadata": METADATA} for i, v in vista.items()}),
        "ocrbench": write(home / "ocr.json", [ocr, ocr]),
        "chair": coco,
        "pope": write(
            home / "pope.json",  # JSON lines under that name, as the official files are
            lines([{"question_id": i, "image": "1.jpg", "text": "?", "label": t} for i, t in ((1, "yes"), (2, "no"))]),
        ),
    }


TOP = {"mme": 2800.0, "points": 1000.0}


def check(name: str, report: Mapping[str, Any]) -> None:
    for label, found in report["scores"].items():
        top = TOP.get(label, TOP.get(name, 1.0))
        low, high = found["ci95"]
        assert 0 <= found["value"] <= top and 0 <= low <= high <= top


def test_there_are_twelve(references: Mapping[str, Path]) -> None:
    assert set(references) == set(BENCHMARKS) and len(BENCHMARKS) == 12
    with pytest.raises(InputError, match="choose from vqav2"):
        benchmark("vqa")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_empty_answers_are_scored(name: str, references: Mapping[str, Path]) -> None:
    bench = benchmark(name)
    questions = bench.entries(references[name])
    check(name, bench.score(questions, dict.fromkeys(questions, "")))


@pytest.mark.parametrize("name", BENCHMARKS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_order_changes_nothing_and_scores_are_in_range(
    name: str, references: Mapping[str, Path], data: st.DataObject
) -> None:
    bench = benchmark(name)
    questions = bench.entries(references[name])
    said = {i: data.draw(st.one_of(st.sampled_from(["A", "5", "yes", "a dog", "red"]), st.text())) for i in questions}
    report = bench.score(questions, said)
    check(name, report)
    order = data.draw(st.permutations(list(questions)))
    assert bench.score({i: questions[i] for i in order}, {i: said[i] for i in reversed(order)}) == report


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "chair"])
def test_a_prompt_asks_each_question(name: str, references: Mapping[str, Path]) -> None:
    bench = benchmark(name)
    asked = {"question": "What?", **next(iter(bench.entries(references[name]).values()))}
    assert "?" in bench.prompt(asked)


OFFICIAL = {
    "vqav2": ("r.json", [{"question_id": 1, "answer": "red"}, {"question_id": 2, "answer": "Dark red."}], 1.0),
    "docvqa": ("r.json", [{"questionId": 4, "answer": "A  b"}], 1.0),
    "chartqa": ("r.json", [{"imgname": "1.png", "label": "5", "prediction": p} for p in ("5.2", "6")], 0.5),
    "mmbench": (
        "r.tsv",
        tsv([["index", "prediction", "answer"], *[[str(5 + k * 10**6), "A", "A"] for k in range(4)]]),
        0,
    ),
    "seed-bench": ("r.jsonl", lines([{"q_id": "7", "prediction": "A", "gt": "A"}]), 1.0),
    "mmmu": ("r.json", {"validation_Art_1": "B", "validation_Art_2": "(A)"}, 0.5),
    "mathvista": (
        "r.json",
        {
            "1": {"pid": "1", "response": "It is 5", "extraction": "5.0", "answer": "5"},
            "2": {"pid": "2", "response": "6", "extraction": "", "answer": "5"},
        },
        0.5,
    ),
    "ocrbench": ("r.json", [{"answers": ["a"], "predict": p} for p in ("CAT", "x")], 0.5),
    "chair": ("r.json", {"overall": {}, "imgToEval": {"9": {"image_id": 9, "caption": "a puppy"}}}, 0.0),
    "pope": ("r.json", lines([{"question": "?", "answer": "Yes."}, {"question": "?", "answer": "No."}]), 1.0),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_result_files(name: str, references: Mapping[str, Path], tmp_path: Path) -> None:
    file, content, expected = OFFICIAL[name]
    path = write(tmp_path / file, content)
    score(benchmark=name, predictions=str(path), references=str(references[name]), json=str(tmp_path / "out/s.json"))
    report = json.loads((tmp_path / "out/s.json").read_text())
    assert next(iter(report["scores"].values()))["value"] == expected


def test_seed_bench_takes_the_least_loss(references: Mapping[str, Path], tmp_path: Path) -> None:
    questions = entries(references["seed-bench"])
    file = write(tmp_path / "r.jsonl", lines([{"question_id": "7", "losses": [2.0, 0.5, 3.0, 1.0]}]))
    assert answers(file, questions) == {"7": "B"}


def test_the_ids_of_ocrbench_are_of_its_data_sets(tmp_path: Path) -> None:
    """The official file has 1,000 rows of 857 ids; its result file has the same rows with what was said."""
    kinds = {"type": "Regular Text Recognition", "question": "what is written in the image?"}
    rows = [
        kinds | {"dataset_name": dataset, "id": i, "image_path": f"{dataset}/{i}.png", "answers": answer}
        for dataset, i, answer in (("IIIT5K", 184, "FRIEND"), ("svt", 184, ["bus", "stop"]), ("svt", 7, "7"))
    ]
    references = write(tmp_path / "OCRBench.json", rows)
    questions = entries(references)
    assert list(questions) == ["IIIT5K/184", "svt/184", "svt/7"]
    said = {"IIIT5K/184": "friend", "svt/184": "it says Stop", "svt/7": "8"}
    official = [row | {"predict": text, "result": 0} for row, text in zip(rows, said.values(), strict=True)]
    own = [{"question_id": i, "answer": text} for i, text in said.items()]
    ordered = [{"id": row["id"], "answer": text} for row, text in zip(rows, said.values(), strict=True)]
    for number, found in enumerate((official, official[::-1], own[::-1], ordered)):
        file = write(tmp_path / f"{number}.json", found)
        assert answers(file, questions) == said
        assert benchmark("ocrbench").score(questions, said)["scores"]["points"]["value"] == 2
    with pytest.raises(InputError, match=r"two rows with the id '184'.*dataset_name"):
        answers(write(tmp_path / "r.json", ordered[::-1]), questions)


@pytest.mark.parametrize("kind", [int, float, str])
def test_an_id_is_the_same_as_a_number_and_as_text(kind: type, references: Mapping[str, Path], tmp_path: Path) -> None:
    questions = entries(references["pope"])
    found = answers(
        write(tmp_path / "r.jsonl", lines([{"question_id": kind(i), "answer": "no"} for i in (2, 1)])), questions
    )
    assert found == {"2": "no", "1": "no"}


def test_published_results_are_read_as_they_are(references: Mapping[str, Path], tmp_path: Path) -> None:
    """SEED-Bench's have a comma after each line, MMMU's are in a folder a subject."""
    seed = write(
        tmp_path / "seed.jsonl", '{"question_id": "7", "prediction": "A"},\n{"question_id": "8", "prediction": "B"},\n'
    )
    assert answers(seed, dict.fromkeys("78", {})) == {"7": "A", "8": "B"}
    for subject, text in (("Art", "A"), ("Math", "B")):
        row = {"id": f"validation_{subject}_1", "answer": "C", "response": text}
        write(tmp_path / "mmmu" / subject / "output.json", [row])
    assert answers(tmp_path / "mmmu", {}) == {"validation_Art_1": "A", "validation_Math_1": "B"}


def test_a_damaged_file_is_named_with_its_line(tmp_path: Path) -> None:
    broken = write(tmp_path / "r.jsonl", '{"question_id": 1, "answer": "no"}\n{"question_id": 2, "an')
    pointer = write(tmp_path / "p.json", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")
    table = write(tmp_path / "t.parquet", "PAR1")
    for file, message in ((broken, r"r\.jsonl: line 2"), (pointer, "git lfs pull"), (table, r"t\.parquet")):
        with pytest.raises(InputError, match=message):
            answers(file, {})


def test_the_command_line(references: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = write(
        tmp_path / "results, 1/count.txt", tsv([["1.jpg", "Six?", "No", "no"], ["1.jpg", "Two?", "Yes", "Yes"]])
    )
    words = ["mme", "--predictions", str(results.parent), "--references", str(references["mme"])]
    assert cli.main(["score", *words]) == 0
    said = capsys.readouterr().out
    assert "total" in said and "200.0000" in said and "perception" in said
    assert cli.main(["score", "pope", f"predictions={tmp_path / 'none.json'}", f"references={references['pope']}"]) == 2
    assert "none.json" in capsys.readouterr().err


def test_what_does_not_fit_is_refused(references: Mapping[str, Path], tmp_path: Path) -> None:
    def run(rows: Any, file: str = "r.jsonl") -> None:
        path = write(tmp_path / file, rows if isinstance(rows, str) else lines(rows))
        score(benchmark="pope", predictions=str(path), references=str(references["pope"]), json=None)

    yes = {"question_id": 1, "answer": "yes"}
    for rows, said in (
        ([yes], "1 of 2 questions have no answer, the first '2'"),
        ([yes, {"question_id": 2, "answer": "no"}, {"question_id": 3, "answer": "no"}], "not in the references"),
        ([yes, yes], "two rows with the id '1'"),
        ([yes, {"question_id": 2}], "row 1 has no answer"),
        ([yes, {"answer": "no"}], "row 1 has no question_id"),
        ([{"answer": "no"}], "1 answers without ids to 2 questions"),
        ("[1, 2]", "cannot read|not a list of objects"),
        ("", "nothing to score"),
        ("{", "cannot read"),
    ):
        with pytest.raises(InputError, match=said):
            run(rows)
    with pytest.raises(InputError, match="a folder or a file"):
        run("x", "r.txt")
    with pytest.raises(InputError, match="no field 'answers'"):
        bench = benchmark("textvqa")
        bench.score({"1": {"question": "?"}}, {"1": "x"})


def test_intervals_cover_as_often_as_they_say() -> None:
    rng = random.Random(0)
    import numpy as np

    covered = 0
    for _ in range(60):
        hits = np.array([[float(rng.random() < 0.7), 1.0] for _ in range(80)])
        low, high = np.quantile((drawn := resampled(hits))[:, 0] / drawn[:, 1], (0.025, 0.975))
        covered += low <= 0.7 <= high
    assert covered >= 50


def test_tables_with_lists_as_text_are_read_as_lists(tmp_path: Path) -> None:
    """A TSV, such as VLMEvalKit's, has the text of a list, a number as text, and answers with a capital."""
    choice = ["1", "q?", "multi_choice", "text", "['5', 'long one']", "5", ""]
    number = ["2", "q?", "free_form", "float", "", "1.5", "1.0"]
    head = ["index", "question", "question_type", "answer_type", "choices", "answer", "precision"]
    formula = "Handwritten Mathematical Expression Recognition"
    ocr = [["1", "?", "['FRIEND', 'pal']", "Scene"], ["2", "?", "['x ^ 2']", formula], ["3", "?", "['7']", "Scene"]]
    tables: dict[str, tuple[list[list[str]], dict[str, str], str, float]] = {
        "mathvista": ([head, choice, number], {"1": "(A)", "2": "1.52"}, "accuracy", 1.0),
        "ocrbench": (
            [["index", "question", "answer", "category"], *ocr],
            {"1": "friend", "2": "x^2", "3": "8"},
            "points",
            2.0,
        ),
        "pope": (
            [["index", "question", "answer"], ["1", "?", "Yes"], ["2", "?", "No"]],
            {"1": "yes", "2": "no"},
            "accuracy",
            1.0,
        ),
        "docvqa": (
            [["questionId", "question", "answers"], ["1", "?", "['hello', 'x']"]],
            {"1": "helo"},
            "anls",
            0.8,
        ),
        "textvqa": (
            [["question_id", "question", "answers"], ["1", "?", str(["bus"] * 10)]],
            {"1": "bus"},
            "accuracy",
            1.0,
        ),
    }
    for name, (rows, predictions, main, value) in tables.items():
        bench = benchmark(name)
        questions = bench.entries(write(tmp_path / f"{name}.tsv", tsv(rows)))
        assert bench.score(questions, predictions)["scores"][main]["value"] == pytest.approx(value), name
    prompt = benchmark("mathvista").prompt(benchmark("mathvista").entries(tmp_path / "mathvista.tsv")["1"])
    assert "(A) 5\n(B) long one" in prompt and "(C)" not in prompt


def test_references_of_mmmu_with_a_column_per_option_are_refused(tmp_path: Path) -> None:
    rows = [["index", "question", "A", "B", "answer"], ["1", "?", "cat", "dog", "B"]]
    questions = entries(write(tmp_path / "MMMU.tsv", tsv(rows)))
    with pytest.raises(InputError, match="official parquet"):
        benchmark("mmmu").score(questions, {"1": "The answer is (B)"})

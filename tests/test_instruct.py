"""Instruction data: from truth, checked against the scene a second time, and from a hosted model's text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_hosted import MODEL, Server, completion
from test_hosted import server as server  # a fixture
from test_questions import Draw, build, draws, possible_views

from vla.commands.record import record
from vla.common.scene_objects import Scene, SceneObject
from vla.datasets.hosted_instructions import TASKS, facts, hosted_instructions
from vla.datasets.instructions import NUMBERS, instructions
from vla.datasets.mixture import Conversations
from vla.datasets.questions import Question
from vla.datasets.vqa import CONVERSATION, VqaStore
from vla.errors import InputError
from vla.models.backbones.hosted import Hosted

ROW = Scene(
    tuple(
        SceneObject(color, shape, (0.2 + 0.1 * i, 0.1, 0.02), {"front": (0.2 + 0.3 * i, 0.5)})
        for i, (color, shape) in enumerate((("red", "cube"), ("blue", "ball"), ("red", "cone")))
    ),
    {},
)


def of(kind: str, made: list[Question]) -> list[Question]:
    return [question for question in made if question.kind == kind]


@given(draw=draws(), seed=st.integers(0, 99))
def test_a_caption_names_what_is_surely_seen_and_no_more(draw: Draw, seed: int) -> None:
    scene = build(draw)
    made = instructions(scene, np.random.default_rng(seed))
    (caption,) = of("caption", made)
    surely = possible_views(scene, "front")[0]
    told = re.findall(r"\b(?:an?|another) (\w+ \w+)", caption.answer) if surely else []
    assert Counter(told) == Counter(thing.name for thing in surely)
    places = sorted(surely, key=lambda thing: thing.centers["front"])
    assert told == [thing.name for thing in places]
    if len(possible_views(scene, "front")) > 1:  # in doubt: nothing that rests on how many there are
        assert made == [caption]


@given(draw=draws(), seed=st.integers(0, 99))
def test_what_is_concluded_holds(draw: Draw, seed: int) -> None:
    scene = build(draw)
    (things, *_) = possible_views(scene, "front")
    at = {thing.name: thing.centers["front"][0] for thing in things}
    for question in of("reasoning", instructions(scene, np.random.default_rng(seed))):
        verdict = question.answer.rpartition(" ")[2]
        if more := re.search(r"more (\w+) objects than (\w+) objects", question.text):
            many, few = (sum(thing.color == color for thing in things) for color in more.groups())
            assert question.answer.startswith(f"{NUMBERS[many]} {more[1]} and {NUMBERS[few]} {more[2]}")
            assert verdict == ("yes" if many > few else "no")
        else:
            side = re.search(r"is the (.+) (left|right) of the (.+), going by the (.+)\?", question.text)
            assert side is not None
            first, way, second, between = side.groups()
            assert (at[first] < at[second]) == ((way == "left") == (verdict == "yes"))
            assert min(at[first], at[second]) < at[between] < max(at[first], at[second])


@given(draw=draws(), seed=st.integers(0, 99))
def test_a_conversation_agrees_with_the_scene(draw: Draw, seed: int) -> None:
    scene = build(draw)
    talk = of(CONVERSATION, instructions(scene, np.random.default_rng(seed)))
    (things, *others) = possible_views(scene, "front")
    if talk:
        assert not others and talk[0].answer == str(len(things))
    if len(talk) > 1:
        side = talk[1].text.removesuffix("?").rpartition(" ")[2]
        end = (min if side == "left" else max)(things, key=lambda thing: thing.centers["front"][0])
        assert talk[1].answer.endswith(end.name) and talk[-1].answer == end.color


def test_every_kind_is_made_of_a_clear_scene_and_the_seed_fixes_it() -> None:
    made = instructions(ROW, np.random.default_rng(3))
    assert {q.kind for q in made} == {"caption", "detail", "reasoning", CONVERSATION}
    assert of("caption", made)[0].answer == "a red cube, a blue ball and a red cone"
    (detail,) = of("detail", made)
    assert "three objects" in detail.answer and "the red cube is closest to the robot" in detail.answer
    assert len(of(CONVERSATION, made)) >= 4
    assert made == instructions(ROW, np.random.default_rng(3))


def hosted(server: Server) -> Hosted:
    return Hosted(MODEL, f"http://127.0.0.1:{server.server_port}/v1", None, attempts=1, concurrency=1)


def test_a_hosted_model_is_told_the_facts_and_its_turns_are_read(server: Server) -> None:
    server.replies = [
        completion("Sure!\nQ: How many?\nA: Three.\n\nQ: Which is left?\nA: The red cube."),
        completion("Q: Describe it.\nA: A row of three."),
        completion("I would rather not."),
    ]
    (made,) = hosted_instructions([ROW], hosted(server))
    assert [(q.kind, q.text, q.answer) for q in made] == [
        (CONVERSATION, "how many?", "three."),
        (CONVERSATION, "which is left?", "the red cube."),
        ("detail", "describe it.", "a row of three."),
    ]
    asked = [body["messages"][-1]["content"] for _, body in server.seen]
    assert len(asked) == len(TASKS) and all(facts(ROW) in text for text in asked)
    assert "red cube: 20 50" in facts(ROW) and "a red cube, a blue ball and a red cone" in facts(ROW)


def test_a_model_that_never_keeps_the_format_is_refused(server: Server) -> None:
    server.replies = [completion("no")]
    with pytest.raises(InputError, match="wrote no turn of the form"):
        hosted_instructions([ROW], hosted(server))


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[VqaStore]:
    out = tmp_path / "a.zarr"
    options = {"codec": "zstd", "seed": 0, "noise": 0.0, "randomize": False, "workers": 1}
    record(task="scenes", episodes=6, out=str(out), questions="instruct", **options)  # type: ignore[arg-type]
    yield VqaStore(out)


def test_recorded_scenes_hold_instructions_and_stages_take_the_kinds_they_name(recorded: VqaStore) -> None:
    kinds = Counter(q.kind for q in recorded.questions())
    assert kinds["caption"] == len(recorded) == 6 and kinds.keys() <= {"caption", "detail", "reasoning", CONVERSATION}
    captions = Conversations(recorded, None, 8, ["caption"])
    for i in range(len(captions)):
        example = captions.example(i, np.random.default_rng(0))
        assert example.turns == () and not example.conversation and len(example.images) == 1
    assert len(Conversations(recorded, None, 8, ["count"])) == 0


def test_questions_that_there_are_not_are_refused(tmp_path: Path) -> None:
    options = {"codec": "zstd", "seed": 0, "noise": 0.0, "randomize": False, "workers": 1}
    with pytest.raises(InputError, match="questions are short, instruct, all or hosted"):
        record(task="scenes", episodes=1, out=str(tmp_path / "a"), questions="long", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "a").exists()


def test_scenes_are_recorded_with_what_a_hosted_model_writes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server.replies = [completion("Q: What is there?\nA: A Cube.")]
    model = f"hosted:{MODEL}@http://127.0.0.1:{server.server_port}/v1"
    options = {"codec": "zstd", "seed": 0, "noise": 0.0, "randomize": False, "workers": 1}
    record(task="scenes", episodes=1, out=str(tmp_path / "a"), questions=model, **options)  # type: ignore[arg-type]
    item = VqaStore(tmp_path / "a")[0]
    assert [q.kind for q in item.questions] == list(TASKS) and item.source == f"scenes, {model}"
    assert {(q.text, q.answer) for q in item.questions} == {("what is there?", "a cube.")}

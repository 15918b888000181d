"""Every answer is derived a second time, from the question's words alone."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.common.scene_objects import Scene, SceneObject
from vla.datasets.questions import COLORS as COLOR_WORDS
from vla.datasets.questions import DEPTH_MARGIN, KINDS, LATERAL_MARGIN, MAX_COUNT, Question, questions
from vla.datasets.questions import SHAPES as VOCABULARY
from vla.errors import InputError

COLORS = ("red", "green", "blue", "orange")
SHAPES = ("cube", "ball", "box")
# Coarse, so that offsets about the margins are common.
FRACTIONS = st.tuples(st.integers(-1, 21).map(lambda i: i * 0.05), st.floats(0, 1))
CAMERAS = ("front", "wrist")


def centers() -> st.SearchStrategy[dict[str, tuple[float, float]]]:
    return st.dictionaries(st.sampled_from(CAMERAS), FRACTIONS)


Draw = tuple[
    list[tuple[str, str, tuple[float, float], dict[str, tuple[float, float]]]], dict[str, tuple[float, float]], int
]


def draws() -> st.SearchStrategy[Draw]:
    """Plain values, for `build`: type checkers draw at random, which hypothesis forbids in its own strategies."""
    position = st.tuples(st.integers(3, 12).map(lambda i: i * 0.03), st.integers(-6, 6).map(lambda i: i * 0.03))
    thing = st.tuples(st.sampled_from(COLORS), st.sampled_from(SHAPES), position, centers())
    return st.tuples(st.lists(thing, max_size=7), centers(), st.integers(0, 2))


def build(draw: Draw) -> Scene:
    things, gripper, ambiguous = draw
    objects = tuple(SceneObject(color, shape, (*place, 0.02), seen) for color, shape, place, seen in things)
    return Scene(objects, gripper, {"front": frozenset(thing.name for thing in objects[:ambiguous])})


def rngs() -> st.SearchStrategy[np.random.Generator]:
    return st.integers(0, 2**32).map(np.random.default_rng)


def possible_views(scene: Scene, camera: str) -> list[list[SceneObject]]:
    """Every set of objects that a reader of the images may hold to be in view."""
    sure, unsure = [], []
    for thing in scene.objects:
        if thing.name in scene.ambiguous.get(camera, ()) or (camera == "front" and set(thing.centers) == {"wrist"}):
            unsure.append(thing)
        elif camera in thing.centers:
            sure.append(thing)
    subsets = itertools.chain.from_iterable(itertools.combinations(unsure, n) for n in range(len(unsure) + 1))
    return [sure + list(subset) for subset in subsets]


def described(noun: str, things: list[SceneObject]) -> list[SceneObject]:
    noun = re.sub(r"^(an?|the) ", "", noun)
    noun = noun[:-2] if noun.endswith("boxes") else noun.removesuffix("s")
    color, _, head = noun.rpartition(" ")
    known = head in (*SHAPES, *VOCABULARY)
    assert known or head in ("object", "one", "thing"), noun
    return [t for t in things if color in ("", t.color) and (not known or t.shape == head)]


def only(noun: str, things: list[SceneObject]) -> SceneObject:
    (thing,) = described(noun, things)
    return thing


def answer(question: Question, scene: Scene, things: list[SceneObject]) -> str:
    """What a careful reader who sees `things` answers; fails where the question has no one answer."""
    text = question.text.rstrip("?").removeprefix(f"in the {question.camera} view, ")
    if question.kind == "existence":
        noun = re.search(r"\b(an? .+?)(?: be seen| visible| present| in sight)?$", text)
        return "yes" if described(noun[1], things) else "no"  # type: ignore[index]
    if question.kind == "count":
        noun = re.search(r"(?:how many|number of|count the) (.+?)(?: are| do| can|$)", text)
        return str(len(described(noun[1], things)))  # type: ignore[index]
    if question.kind == "relation":
        return relation(text, things, question.camera)
    if question.kind == "identify":
        place = [(int(value) + 0.5) / 100 for value in re.findall(r"\d+", text)]
        there = [t for t in things if question.camera in t.centers]
        return min(there, key=lambda t: math.dist(t.centers[question.camera], place)).name
    noun = re.search(r"the (?!shape of|color of|position of)(.+?)(?: have| is what (?:color|shape))?$", text)
    name = noun[1]  # type: ignore[index]
    if question.kind == "color":
        return only(name, things).color
    if question.kind == "shape":
        return only(name, things).shape
    x, y = scene.gripper[question.camera] if name == "gripper" else only(name, things).centers[question.camera]
    return " ".join(str(int(np.clip(np.floor(value * 100), 0, 99))) for value in (x, y))


def relation(text: str, things: list[SceneObject], camera: str) -> str:
    nouns = re.findall(r"the (?!robot|left|right|side)((?:\w+ )?(?:cube|ball|box|object|one|thing))\b", text)
    a, b = (only(noun, things) for noun in nouns)
    if text.startswith(("compared to", "on which side", "which side")):
        a, b = b, a
    if "robot" in text:
        gap = a.position[0] - b.position[0]
        assert abs(gap) > DEPTH_MARGIN
        assert gap * (math.hypot(*a.position[:2]) - math.hypot(*b.position[:2])) > 0
        farther = "farther" in text or "further" in text
        return "yes" if (gap > 0) == farther else "no"
    offset = a.centers[camera][0] - b.centers[camera][0]
    assert abs(offset) > LATERAL_MARGIN
    right = "right" if offset > 0 else "left"
    sides = set(re.findall(r"left|right", text))
    if len(sides) != 1:
        return right
    return "yes" if sides == {right} else "no"


@given(draws(), rngs(), st.sampled_from(CAMERAS), st.none() | st.integers(0, 12))
def test_every_answer_follows_from_the_words_whatever_the_unsure_objects_do(
    draw: Draw, rng: np.random.Generator, camera: str, count: int | None
) -> None:
    scene = build(draw)
    for question in questions(scene, rng, count=count, camera=camera):
        assert question.text == question.text.lower()
        assert {answer(question, scene, things) for things in possible_views(scene, camera)} == {question.answer}


@given(draws(), rngs())
def test_answers_are_short(draw: Draw, rng: np.random.Generator) -> None:
    scene = build(draw)
    for question in questions(scene, rng, count=12):
        allowed = {
            "existence": {"yes", "no"},
            "color": {thing.color for thing in scene.objects},
            "shape": {thing.shape for thing in scene.objects},
            "count": {str(number) for number in range(MAX_COUNT + 1)},
            "relation": {"yes", "no", "left", "right"},
            "identify": {thing.name for thing in scene.objects},
        }.get(question.kind)
        if allowed is None:
            assert all(0 <= int(value) <= 99 for value in question.answer.split())
        else:
            assert question.answer in allowed


@given(draws(), rngs(), st.lists(st.sampled_from(KINDS), unique=True), st.integers(0, 8))
def test_kinds_and_count_limit_what_is_asked(
    draw: Draw, rng: np.random.Generator, kinds: list[str], count: int
) -> None:
    scene = build(draw)
    asked = questions(scene, rng, kinds, count)
    assert len(asked) <= count
    assert {question.kind for question in asked} <= set(kinds)
    assert len({question.text for question in asked}) == len(asked)
    single = questions(scene, rng, kinds)
    assert [question.kind for question in single] == [k for k in kinds if k in {q.kind for q in single}]


@given(draws(), st.integers(0, 2**32))
def test_a_seed_fixes_the_questions(draw: Draw, seed: int) -> None:
    scene = build(draw)
    first, second = (questions(scene, np.random.default_rng(seed), count=8) for _ in range(2))
    assert first == second


@given(draws(), rngs())
def test_the_wrist_view_is_named_and_asked_for_existence_and_points_only(draw: Draw, rng: np.random.Generator) -> None:
    scene = build(draw)
    for question in questions(scene, rng, camera="wrist"):
        assert question.text.startswith("in the wrist view, ")
        assert question.kind in ("existence", "point")
        assert question.camera == "wrist"


def table(rng: np.random.Generator) -> Scene:
    """Three objects in clear view, distinct in color and shape."""
    colors, shapes = (
        rng.permutation(COLOR_WORDS),
        ("cube", "ball", "cylinder"),
    )
    objects = tuple(
        SceneObject(str(c), s, (rng.uniform(0.1, 0.4), rng.uniform(-0.2, 0.2), 0.02), {"front": tuple(rng.random(2))})
        for c, s in zip(colors, shapes, strict=False)
    )
    return Scene(objects, {"front": (0.5, 0.5)})


def test_no_constant_answer_does_well() -> None:
    rng = np.random.default_rng(0)
    answers: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for _ in range(600):
        for question in questions(table(rng), rng):
            answers[question.kind][question.answer] += 1
    best = {kind: counter.most_common(1)[0][1] / counter.total() for kind, counter in answers.items()}
    assert best["existence"] < 0.55
    assert best["color"] < 0.22
    assert best["shape"] < 0.38
    assert best["count"] < 0.40
    assert best["relation"] < 0.45
    assert best["point"] < 0.25
    relations = answers["relation"]
    assert abs(relations["yes"] - relations["no"]) < 0.15 * relations.total()
    assert abs(relations["left"] - relations["right"]) < 0.15 * relations.total()


def test_existence_cannot_be_guessed_from_how_much_the_question_says() -> None:
    rng = np.random.default_rng(0)
    answers: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    hard = Counter[bool]()
    for _ in range(1500):
        scene = table(rng)
        (question,) = questions(scene, rng, ("existence",))
        name = set(question.text.rstrip("?").split()) & {*COLOR_WORDS, *VOCABULARY}
        answers[len(name) == 2][question.answer] += 1
        if question.answer == "no" and len(name) == 2:
            hard[any(thing.color in name for thing in scene.objects)] += 1
    for counter in answers.values():
        assert 0.44 < counter["yes"] / counter.total() < 0.56
    assert hard[True] > 2 * hard[False]


def test_pointing_asks_for_the_gripper_too() -> None:
    rng = np.random.default_rng(0)
    asked = [questions(table(rng), rng, ("point",))[0] for _ in range(300)]
    gripper = [question for question in asked if "gripper" in question.text]
    assert 20 < len(gripper) < 100
    assert {question.answer for question in gripper} == {"50 50"}


def test_language_is_varied() -> None:
    rng = np.random.default_rng(0)
    scene = table(rng)
    for kind in KINDS:
        assert len({questions(scene, rng, (kind,))[0].text for _ in range(300)}) > 20


def ask(kind: str, *objects: SceneObject) -> set[str]:
    rng = np.random.default_rng(0)
    return {question.text for _ in range(200) for question in questions(Scene(objects, {}), rng, (kind,))}


def thing(name: str, place: tuple[float, float], x: float, camera: str = "front") -> SceneObject:
    color, shape = name.split()
    return SceneObject(color, shape, (*place, 0.02), {camera: (x, 0.5)})


def test_no_question_depends_on_what_only_the_wrist_sees() -> None:
    front, wrist = thing("red cube", (0.2, 0.0), 0.3), thing("blue cube", (0.3, 0.0), 0.7, "wrist")
    assert ask("color", front)
    assert not ask("color", front, wrist)
    assert not any("blue" in text or "cubes" in text for text in ask("count", front, wrist))
    assert not any(text.endswith("the cube?") for text in ask("point", front, wrist))


def test_offsets_within_the_margins_are_not_asked_about() -> None:
    a, near = thing("red cube", (0.2, 0.0), 0.5), thing("blue ball", (0.22, 0.0), 0.55)
    assert not ask("relation", a, near)
    assert not any("robot" in text for text in ask("relation", a, thing("blue ball", (0.22, 0.0), 0.9)))
    assert all("robot" in text for text in ask("relation", a, thing("blue ball", (0.3, 0.0), 0.55)))


def test_closer_is_asked_only_where_both_readings_agree() -> None:
    # Farther along the robot's x axis, yet nearer to its base.
    assert not ask("relation", thing("red cube", (0.2, 0.25), 0.5), thing("blue ball", (0.26, 0.0), 0.5))


def test_counts_stop_at_the_greatest_answer() -> None:
    cubes = [thing("red cube", (0.2, 0.0), 0.5)] * (MAX_COUNT + 1)
    assert any("cubes" in text for text in ask("count", *cubes[1:]))
    assert not any("cubes" in text for text in ask("count", *cubes))


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(InputError, match="'colour'"):
        questions(Scene((), {}), np.random.default_rng(0), ("color", "colour"))

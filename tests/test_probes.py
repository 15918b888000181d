"""The probes: their truth, and what answerers of known behaviour score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla.common.stored_image import Views
from vla.envs.objects import ObjectSpec
from vla.evaluation.vlm.answerer import Answerer
from vla.evaluation.vlm.probes.captions import CHAIR_SIM, attributed
from vla.evaluation.vlm.probes.counting import COUNTING, matched, number, points
from vla.evaluation.vlm.probes.detail import DETAIL, TASKS, thresholds
from vla.evaluation.vlm.probes.existence import POPE_SIM
from vla.evaluation.vlm.probes.modality import measured
from vla.evaluation.vlm.probes.probe import Probe, ProbeResult
from vla.evaluation.vlm.probes.scenes import studio
from vla.evaluation.vlm.probes.spatial import SPATIAL
from vla.evaluation.vlm.scoring.files import Entry

PROBES = {"pope": POPE_SIM, "chair": CHAIR_SIM, "counting": COUNTING, "spatial": SPATIAL, "detail": DETAIL}
N = 8


def told(text: str) -> Answerer:
    return lambda questions, images, tokens, role: [text] * len(questions)


def knowing(entries: Mapping[str, Entry]) -> Answerer:
    """Who answers what is true of the picture that it sees, and "no" where there is none to see."""
    truth = {(entry["image"].tobytes(), entry["question"]): entry["answer"] for entry in entries.values()}

    def answer(questions: Sequence[str], images: Sequence[Views], tokens: int, role: str) -> list[str]:
        shown = [next(iter(views.values())).tobytes() for views in images]
        return [truth.get(key, "no") for key in zip(shown, questions, strict=True)]

    return answer


def scores(found: ProbeResult) -> dict[str, float]:
    return {name: score["value"] for name, score in found.report["scores"].items()}


@pytest.fixture(scope="module", params=PROBES)
def made(request: pytest.FixtureRequest) -> tuple[str, Probe, Mapping[str, Entry]]:
    probe = PROBES[request.param]
    return request.param, probe, probe.entries(N, 0)


def test_the_same_seed_asks_the_same(made: tuple[str, Probe, Mapping[str, Entry]]) -> None:
    _, probe, entries = made
    again, other = probe.entries(N, 0), probe.entries(N, 1)
    assert [(e["question"], e["image"].tobytes()) for e in again.values()] == [
        (e["question"], e["image"].tobytes()) for e in entries.values()
    ]
    assert {e["image"].tobytes() for e in other.values()}.isdisjoint(e["image"].tobytes() for e in entries.values())


def test_who_knows_the_truth_scores_fully_and_without_a_picture_does_not(
    made: tuple[str, Probe, Mapping[str, Entry]],
) -> None:
    name, probe, entries = made
    found = probe(knowing(entries), N, 0)
    best = {
        "pope": {"accuracy": 1, "f1": 1, "yes_ratio": 0.5, "counterfactual_pairs": 1},
        "chair": {"chair_i": 0, "chair_s": 0, "recall": 1, "attribute_chair_i": 0},
        "counting": {"exact": 1, "within_one": 1, "mean_error": 0},
        "spatial": {"accuracy": 1, "consistency": 1},
        "detail": {"accuracy": 1},
    }[name]
    assert scores(found).items() >= best.items()
    assert not [case for case in found.worst if not case.answer.endswith("points")]
    blind = {"chair": ("recall", 0.0), "counting": ("exact", 0.0)}.get(name, (found.main[0], 0.6))
    assert found.blank[blind[0]] <= blind[1]


@pytest.mark.parametrize("text", ["", "yes", "7", "a red cube", "1e9 1.2.3 x1='. y1=.", "\x00)("])
def test_any_answer_is_scored(made: tuple[str, Probe, Mapping[str, Entry]], text: str) -> None:
    _, probe, entries = made
    report = probe.benchmark.score(entries, dict.fromkeys(entries, text))
    for score in report["scores"].values():
        assert np.isfinite([score["value"], *score["ci95"]]).all()
    assert all(probe.error(entry, text) >= 0 for entry in entries.values())


def test_who_says_yes_to_everything_is_at_chance_and_contradicts_itself() -> None:
    pope, spatial = (scores(probe(told("yes"), N, 0, baseline=False)) for probe in (POPE_SIM, SPATIAL))
    assert pope["accuracy"] == 0.5 and pope["recall"] == 1 and pope["counterfactual_pairs"] == 0
    assert spatial["consistency"] == 0


def test_the_negative_differs_from_its_counterfactual_in_the_object_alone() -> None:
    things = tuple(ObjectSpec(color, "cube", 0.2, y) for color, y in (("red", -0.1), ("blue", 0.0), ("green", 0.1)))
    with studio() as camera:
        whole, masks = camera.show(things, 5), camera.masks()
        without = camera.show(things, 5, without=1)
        changed = (whole.image != without.image).any(-1)
        names = [thing.name for thing in without.view.visible]
    assert names == ["red cube", "green cube"] and masks.shape[0] == 3
    assert masks[1].any() and (changed == masks[1]).all()


def test_left_of_the_robot_is_right_in_the_image() -> None:
    entries = SPATIAL.entries(N, 0)
    for scene in range(N):
        image, robot = (entries[f"{scene}/left, {of}/plain"]["answer"] for of in ("in the image", "of the robot"))
        assert image != robot  # the camera looks at the robot


def test_captions_are_judged_by_kind_and_by_color() -> None:
    entry = {"visible": ["red cube", "blue ball"], "possible": ["red cube", "blue ball", "green cone"]}
    wrong, named, any_wrong, _, found, there, attributes, colored = CHAIR_SIM.benchmark.units(
        {"0": entry}, {"0": "A red ball, a cone and two bricks."}
    )[0].sums
    assert (wrong, named, any_wrong, found, there) == (1, 3, 1, 1, 2)
    assert (attributes, colored) == (1, 1)
    assert attributed("a small red shiny cube, blue, balls") == ["red cube"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [("There are three.", 3), ("10", 10), ("none", None), ("no 4 or 5", 4), ("", None)],
)
def test_numbers_are_read(said: str, expected: int | None) -> None:
    assert number(said) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('<points x1="10.0" y1="20.5" x2="30" y2="40" alt="cubes">cubes</points>', [[0.1, 0.205], [0.3, 0.4]]),
        ('<point x="99" y="1.5" alt="a">a</point>', [[0.99, 0.015]]),
        ("10 20, 30 40", [[0.1, 0.2], [0.3, 0.4]]),
        ("(10, 20) and 300 40", [[0.1, 0.2]]),
        ("none", []),
    ],
)
def test_points_are_read(said: str, expected: list[list[float]]) -> None:
    assert np.allclose(points(said), np.array(expected).reshape(-1, 2))


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_a_point_is_given_one_object_at_most(count: int, there: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    at, masks = rng.random((count, 2)), rng.random((there, 8, 8)) < 0.5
    hits = matched(at, masks)
    assert 0 <= hits <= min(count, there)
    assert matched(np.concatenate([at, at]), masks) >= hits
    assert matched(at, np.ones((there, 8, 8), bool)) == min(count, there)


@given(arrays(float, (3, 6), elements=st.integers(0, 20).map(float)))
def test_more_right_answers_never_raise_a_threshold_to_the_end(right: np.ndarray) -> None:
    task = TASKS["size_percent"]
    asked = np.full_like(right, 20)
    found = thresholds(task, right, asked)
    low, high = task.levels[0] / 2, task.levels[-1] * 2
    assert ((found >= low - 1e-9) & (found <= high + 1e-9)).all()
    assert thresholds(task, asked[:1], asked[:1])[0] <= found.min()


@pytest.mark.parametrize("name", TASKS)
def test_a_threshold_is_found_again(name: str) -> None:
    task = TASKS[name]
    x, true = np.log2(task.levels), np.log2(task.levels[2]) + 0.3
    right = 1000 * (task.guess + (0.98 - task.guess) / (1 + np.exp(-4 * (x - true))))
    found = thresholds(task, right[None], np.full((1, len(x)), 1000.0))[0]
    assert abs(np.log2(found) - true) < 0.1


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5, 2.0]))
def test_a_gap_that_is_put_between_twins_is_measured(seed: int, apart: float) -> None:
    x = np.random.default_rng(seed).normal(size=(30, 8))
    x[:, 0] = -1
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    away = np.eye(8)[0] * 4 * apart
    report, _, nearest = measured(x, x + away)
    found = {name: score["value"] for name, score in report["scores"].items()}
    if apart == 0:
        assert found["gap"] < 1e-9 and found["recall_at_1"] == 1 and nearest == list(range(30))
    else:
        assert found["gap"] > 0.5 and found["separable"] > 0.9
    assert found["recall_moved"] >= found["recall_at_1"]
    low, high = report["scores"]["recall_at_1"]["ci95"]
    assert low <= found["recall_at_1"] <= high

"""Questions and answers generated from the simulator's ground truth.

| kind      | question                                           | answer                                  |
|-----------|----------------------------------------------------|-----------------------------------------|
| existence | is there a red cube?                               | yes, no (even odds; hard negatives)     |
| color     | what color is the cube?                            | a color word                            |
| shape     | what shape is the red object?                      | a shape word                            |
| count     | how many red objects are there?                    | "0" … "6"                               |
| relation  | is the red cube left of the ball?                  | yes, no; left, right                    |
| point     | where is the red cube? where is the gripper?       | "x y": percent of image width, height   |
| identify  | what is at 34 61?                                  | a color and a shape                     |

A question is generated only if its answer is certain: neither objects of doubtful visibility (`Scene.ambiguous`) nor,
if the question names no view, objects that only the other camera shows may change it. Left and right refer to the
image. Closer and farther must hold in both senses: along the robot's x axis, and in distance from its base.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla.common.scene_objects import POINT_SCALE, Scene, SceneObject
from vla.errors import InputError

KINDS = ("existence", "color", "shape", "count", "relation", "point", "identify")
OTHER_VIEW_KINDS = ("existence", "point")
"""The kinds of questions about other views than the main one, such as the wrist's. They name the view."""
MAIN_CAMERA = "front"
"""The view of questions that name none."""

COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("cube", "ball", "cylinder", "cone", "brick")
"""Colors and shapes of absent objects, in addition to those in the scene."""
MAX_COUNT = 6
LATERAL_MARGIN = 0.08
"""Minimum horizontal distance for left and right, as a fraction of the image width."""
DEPTH_MARGIN = 0.04
"""Minimum distance [m] for closer and farther."""
CLEARANCE = 0.06
"""Minimum distance of an object to all others for questions by position, as a fraction of the image."""
GRIPPER_SHARE = 0.15
"""Share of the pointing questions that are about the gripper."""

EXISTENCE = (
    "is there {a}?",
    "do you see {a}?",
    "can you see {a}?",
    "is {a} visible?",
    "is {a} in sight?",
    "is {a} present?",
    "can {a} be seen?",
)
COLOR = (
    "what color is the {n}?",
    "what is the color of the {n}?",
    "which color does the {n} have?",
    "which color is the {n}?",
    "the {n} is what color?",
    "name the color of the {n}",
    "tell me the color of the {n}",
)
SHAPE = (
    "what shape is the {n}?",
    "what is the shape of the {n}?",
    "which shape does the {n} have?",
    "what is the {n}?",
    "the {n} is what shape?",
    "name the shape of the {n}",
    "tell me the shape of the {n}",
)
COUNT = (
    "how many {p} are there?",
    "how many {p} do you see?",
    "how many {p} can you see?",
    "how many {p} are visible?",
    "what is the number of {p}?",
    "count the {p}",
)
SIDE = (
    "is the {a} {side} of the {b}?",
    "is the {a} to the {side} of the {b}?",
    "is the {a} on the {side} of the {b}?",
    "do you see the {a} {side} of the {b}?",
)
SIDE_CHOICE = (
    "is the {a} left or right of the {b}?",
    "is the {a} to the left or to the right of the {b}?",
    "on which side of the {b} is the {a}, left or right?",
    "which side of the {b} is the {a} on?",
)
DEPTH = (
    "is the {a} {side} the robot than the {b}?",
    "is the {a} {side} the robot compared to the {b}?",
    "compared to the {b}, is the {a} {side} the robot?",
    "does the {a} lie {side} the robot than the {b}?",
)
DEPTH_SIDES = (("closer to", "nearer to"), ("farther from", "further from"))
POINT = (
    "where is the {n}?",
    "point to the {n}",
    "point at the {n}",
    "locate the {n}",
    "find the {n}",
    "give the position of the {n}",
    "what is the position of the {n}?",
    "show me the {n}",
)
IDENTIFY = (
    "what is at {p}?",
    "what object is at {p}?",
    "what do you see at {p}?",
    "name the object at {p}",
    "identify the object at {p}",
    "which object is at {p}?",
    "what is the thing at {p}?",
    "tell me what is at {p}",
)


@dataclass(frozen=True)
class Question:
    """A question about the image of `camera`. Text and answer are lower case."""

    kind: str
    text: str
    answer: str
    camera: str
    answers: tuple[str, ...] = ()
    """The answers of several annotators, if there are any; `answer` is the most common one."""
    talk: int = 0
    """The number of the conversation within its item, for questions of the kind "conversation"."""

    @classmethod
    def from_json(cls, values: Sequence[Any]) -> Question:
        """The question from its fields in order. The last two may be missing."""
        kind, text, answer, camera, *rest = values
        return cls(kind, text, answer, camera, tuple(rest[0]) if rest else (), *rest[1:])


@dataclass(frozen=True)
class Query:
    """A description that matches objects by color and shape. None matches any value."""

    color: str | None = None
    shape: str | None = None

    def matches(self, thing: SceneObject) -> bool:
        """Whether the object has the color and the shape."""
        return self.color in (None, thing.color) and self.shape in (None, thing.shape)

    def noun(self, rng: np.random.Generator) -> str:
        """A singular noun phrase without its article."""
        head = self.shape or _pick(rng, ("object", "one", "thing"))
        return f"{self.color} {head}" if self.color else head

    def plural(self, rng: np.random.Generator) -> str:
        """A plural noun phrase without its article."""
        head = self.shape or _pick(rng, ("object", "thing"))
        head += "es" if head.endswith(("s", "x", "ch", "sh")) else "s"
        return f"{self.color} {head}" if self.color else head


@dataclass(frozen=True)
class View:
    """The content of one camera's image: objects that are certainly visible, and objects that may be."""

    camera: str
    visible: tuple[SceneObject, ...]
    unsure: tuple[SceneObject, ...]
    gripper: tuple[float, float] | None
    colors: tuple[str, ...]
    shapes: tuple[str, ...]

    @classmethod
    def of(cls, scene: Scene, camera: str) -> View:
        """The view of `camera` in a scene."""
        visible, unsure = [], []
        for thing in scene.objects:
            elsewhere = thing.centers or any(thing.name in names for names in scene.ambiguous.values())
            if thing.name in scene.ambiguous.get(camera, ()):
                unsure.append(thing)
            elif camera in thing.centers:
                visible.append(thing)
            elif camera == MAIN_CAMERA and elsewhere:
                # Questions about the main view name no view, and another image may show the object.
                unsure.append(thing)
        colors = tuple(dict.fromkeys((*COLORS, *(thing.color for thing in scene.objects))))
        shapes = tuple(dict.fromkeys((*SHAPES, *(thing.shape for thing in scene.objects))))
        return cls(camera, tuple(visible), tuple(unsure), scene.gripper.get(camera), colors, shapes)

    def count(self, query: Query) -> int | None:
        """The number of matching objects; None if it depends on an object of uncertain visibility."""
        if any(query.matches(thing) for thing in self.unsure):
            return None
        return sum(query.matches(thing) for thing in self.visible)

    def references(self, thing: SceneObject) -> list[Query]:
        """The descriptions that match only `thing`: by name, by color, by shape."""
        queries = (Query(thing.color, thing.shape), Query(color=thing.color), Query(shape=thing.shape))
        return [query for query in queries if self.count(query) == 1]


def questions(
    scene: Scene,
    rng: np.random.Generator,
    kinds: Sequence[str] = KINDS,
    count: int | None = None,
    camera: str = MAIN_CAMERA,
) -> list[Question]:
    """Distinct questions about the scene in one camera's image, determined by `rng`.

    Args:
        scene: the ground truth.
        rng: the source of randomness.
        kinds: the kinds of questions. A kind that is listed twice is generated twice as often.
        count: the maximum number of questions, with the kinds in turn. None: one of each kind that the scene allows.
        camera: for other cameras than the front one, questions name the camera and are of `OTHER_VIEW_KINDS` only.

    Raises:
        InputError: a kind is unknown.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise InputError(f"unknown question kind {unknown[0]!r}; the kinds are {', '.join(KINDS)}")
    main = camera == MAIN_CAMERA
    order = [kind for kind in kinds if main or kind in OTHER_VIEW_KINDS]
    prefix = "" if main else f"in the {camera} view, "
    view = View.of(scene, camera)
    collected: dict[str, Question] = {}
    while order:
        before = len(collected)
        for i in rng.permutation(len(order)) if count is not None else range(len(order)):
            if count is not None and len(collected) >= count:
                break
            pair = _GENERATORS[order[i]](view, rng)
            if pair is not None:
                text = prefix + pair[0]
                collected.setdefault(text, Question(order[i], text, pair[1], camera))
        # A round without new questions: the scene allows hardly any more.
        if count is None or len(collected) >= count or len(collected) == before:
            break
    return list(collected.values())


def point_answer(center: tuple[float, float]) -> str:
    """The answer "x y" for a point (x, y) in fractions of the image's width and height."""
    x, y = (min(max(math.floor(value * POINT_SCALE), 0), POINT_SCALE - 1) for value in center)
    return f"{x} {y}"


def _existence(view: View, rng: np.random.Generator) -> tuple[str, str] | None:
    """At a level of detail at which the scene allows both yes and no, so that the answers are balanced."""
    pairs = [Query(color, shape) for color in view.colors for shape in view.shapes]
    colors, shapes = [Query(color=color) for color in view.colors], [Query(shape=shape) for shape in view.shapes]
    levels = [pairs, pairs, colors, shapes]
    for level in rng.permutation(len(levels)):
        counts = [(query, view.count(query)) for query in levels[level]]
        present = [query for query, number in counts if number]
        absent = [query for query, number in counts if number == 0]
        if present and absent:
            yes = rng.random() < 0.5
            query = _pick(rng, present if yes else _hard(view, absent, rng))
            noun = query.noun(rng)
            article = "an" if noun[0] in "aeiou" else "a"
            return _pick(rng, EXISTENCE).format(a=f"{article} {noun}"), "yes" if yes else "no"
    return None


def _hard(view: View, absent: list[Query], rng: np.random.Generator) -> list[Query]:
    """Absent queries that share a color (usually) or a shape with a visible object, or any if there are none."""
    by_color = [query for query in absent if query.shape and any(t.color == query.color for t in view.visible)]
    by_shape = [query for query in absent if query.color and any(t.shape == query.shape for t in view.visible)]
    draw = rng.random()
    return (by_color if draw < 0.5 else by_shape if draw < 0.85 else absent) or absent


def _color(view: View, rng: np.random.Generator) -> tuple[str, str] | None:
    things = [thing for thing in view.visible if view.count(Query(shape=thing.shape)) == 1]
    if not things:
        return None
    thing = _pick(rng, things)
    return _pick(rng, COLOR).format(n=thing.shape), thing.color


def _shape(view: View, rng: np.random.Generator) -> tuple[str, str] | None:
    things = [thing for thing in view.visible if view.count(Query(color=thing.color)) == 1]
    if not things:
        return None
    thing = _pick(rng, things)
    return _pick(rng, SHAPE).format(n=Query(color=thing.color).noun(rng)), thing.shape


def _count(view: View, rng: np.random.Generator) -> tuple[str, str] | None:
    queries = [Query(), *(Query(color=c) for c in view.colors), *(Query(shape=s) for s in view.shapes)]
    by_number: dict[int, list[Query]] = {}
    for query in queries:
        number = view.count(query)
        if number is not None and number <= MAX_COUNT:
            by_number.setdefault(number, []).append(query)
    if not by_number:
        return None
    number = _pick(rng, sorted(by_number))  # the answer first, so that all possible numbers are equally likely
    return _pick(rng, COUNT).format(p=_pick(rng, by_number[number]).plural(rng)), str(number)


def _relation(view: View, rng: np.random.Generator) -> tuple[str, str] | None:
    referable = [(thing, queries) for thing in view.visible if (queries := view.references(thing))]
    options = [
        (generate, gap, a_queries, b_queries)
        for a, a_queries in referable
        for b, b_queries in referable
        if a is not b
        for generate, gap in (
            (_side, lateral_gap(view, a, b)),
            (_side_choice, lateral_gap(view, a, b)),
            (_depth, depth_gap(a, b)),
        )
        if gap != 0
    ]
    if not options:
        return None
    generate, gap, a_queries, b_queries = _pick(rng, options)
    template, answer = generate(gap, rng)
    return template.format(a=_pick(rng, a_queries).noun(rng), b=_pick(rng, b_queries).noun(rng)), answer


def lateral_gap(view: View, a: SceneObject, b: SceneObject) -> float:
    """The horizontal distance of `a` to the right of `b` [fraction of the image width]; 0 within the margin."""
    gap = a.centers[view.camera][0] - b.centers[view.camera][0]
    return gap if abs(gap) > LATERAL_MARGIN else 0.0


def depth_gap(a: SceneObject, b: SceneObject) -> float:
    """The distance of `a` beyond `b` along the robot's x [m]; 0 within the margin, or if radial distance disagrees."""
    gap = a.position[0] - b.position[0]
    radial = math.hypot(*a.position[:2]) - math.hypot(*b.position[:2])
    return gap if min(abs(gap), abs(radial)) > DEPTH_MARGIN and gap * radial > 0 else 0.0


def _side(gap: float, rng: np.random.Generator) -> tuple[str, str]:
    side = _pick(rng, ("left", "right"))
    template = _pick(rng, SIDE).replace("{side}", side)
    return template, "yes" if (gap > 0) == (side == "right") else "no"


def _side_choice(gap: float, rng: np.random.Generator) -> tuple[str, str]:
    return _pick(rng, SIDE_CHOICE), "right" if gap > 0 else "left"


def _depth(gap: float, rng: np.random.Generator) -> tuple[str, str]:
    farther = bool(rng.integers(2))
    template = _pick(rng, DEPTH).replace("{side}", _pick(rng, DEPTH_SIDES[farther]))
    return template, "yes" if (gap > 0) == farther else "no"


def _point(view: View, rng: np.random.Generator) -> tuple[str, str] | None:
    things = [(thing, queries) for thing in view.visible if (queries := view.references(thing))]
    if view.gripper is not None and (not things or rng.random() < GRIPPER_SHARE):
        noun, center = "gripper", view.gripper
    elif things:
        thing, queries = _pick(rng, things)
        noun, center = _pick(rng, queries).noun(rng), thing.centers[view.camera]
    else:
        return None
    return _pick(rng, POINT).format(n=noun), point_answer(center)


def _identify(view: View, rng: np.random.Generator) -> tuple[str, str] | None:
    """Only about objects that are far enough from all others for the position to be unambiguous."""
    shown = [thing for thing in (*view.visible, *view.unsure) if view.camera in thing.centers]

    def clear(thing: SceneObject) -> bool:
        center = thing.centers[view.camera]
        return all(other is thing or math.dist(center, other.centers[view.camera]) > CLEARANCE for other in shown)

    things = [thing for thing in view.visible if clear(thing)]
    if not things:
        return None
    thing = _pick(rng, things)
    return _pick(rng, IDENTIFY).format(p=point_answer(thing.centers[view.camera])), thing.name


def _pick[T](rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


_GENERATORS: dict[str, Callable[[View, np.random.Generator], tuple[str, str] | None]] = {
    "existence": _existence,
    "color": _color,
    "shape": _shape,
    "count": _count,
    "relation": _relation,
    "point": _point,
    "identify": _identify,
}

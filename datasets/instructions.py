"""Instruction data from the simulator's ground truth, to align and instruction-tune a vision-language model.

`vla record questions=instruct` records them.

| kind         | content                                                                | in LLaVA (2304.08485) |
|--------------|------------------------------------------------------------------------|-----------------------|
| caption      | the visible objects, from left to right                                | captions, stage 1     |
| detail       | the same, with their number and the object closest to the robot        | detailed description  |
| reasoning    | a comparison of numbers or positions, the reasons before the answer    | complex reasoning     |
| conversation | turns that refer to earlier ones                                       | conversation          |

As in `vla.datasets.questions`, nothing may depend on objects of doubtful visibility: scenes with such objects only get
captions, which list the certainly visible objects.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla.common.scene_objects import Scene, SceneObject
from vla.datasets.questions import MAIN_CAMERA, Query, Question, View, depth_gap, lateral_gap
from vla.datasets.vqa import CONVERSATION

CAPTION = ("describe the image", "what is in the image?", "what do you see?", "caption the image", "what is here?")
DETAIL = ("describe the image in detail", "tell me everything that you see", "what is on the table, in detail?")
WHY = "explain, then answer: "
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def instructions(scene: Scene, rng: np.random.Generator, camera: str = MAIN_CAMERA) -> list[Question]:
    """A caption and, if the scene allows them, a description, up to two reasoning questions and a conversation.

    The result is determined by `rng`.
    """
    view = View.of(scene, camera)
    made = [Question("caption", _pick(rng, CAPTION), caption(view), camera)]
    if view.unsure or not view.visible or len(view.visible) >= len(NUMBERS):
        return made
    made.append(Question("detail", _pick(rng, DETAIL), _detail(view), camera))
    for pair in (_compare_numbers(view, rng), _compare_positions(view, rng)):
        if pair is not None:
            made.append(Question("reasoning", WHY + pair[0], pair[1], camera))
    talk = _conversation(view, rng)
    return made + [Question(CONVERSATION, text, answer, camera) for text, answer in talk]


def caption(view: View) -> str:
    """The certainly visible objects, from left to right: "a red cube, a blue ball and another red cube"."""
    phrases: list[str] = []
    for thing in _across(view):
        article = "another" if any(thing.name == n.split(" ", 1)[1] for n in phrases) else _article(thing.name)
        phrases.append(f"{article} {thing.name}")
    return _listed(phrases) or "an empty table"


def _detail(view: View) -> str:
    count = len(view.visible)
    sentences = [f"there {'is' if count == 1 else 'are'} {NUMBERS[count]} object{'s' if count > 1 else ''}"]
    sentences.append(f"from left to right: {caption(view)}" if count > 1 else caption(view))
    if closest := _closest(view):
        sentences.append(f"the {closest.name} is closest to the robot")
    return ". ".join(sentences)


def _compare_numbers(view: View, rng: np.random.Generator) -> tuple[str, str] | None:
    present = sorted({thing.color for thing in view.visible})
    if len(present) < 2:
        return None
    a, b = (str(color) for color in rng.choice(present, 2, replace=False))
    many, few = view.count(Query(color=a)) or 0, view.count(Query(color=b)) or 0
    verdict = "yes" if many > few else "no"
    return (
        f"are there more {a} objects than {b} objects?",
        f"{NUMBERS[many]} {a} and {NUMBERS[few]} {b}, so {verdict}",
    )


def _compare_positions(view: View, rng: np.random.Generator) -> tuple[str, str] | None:
    """A transitive left/right comparison of three objects that are clearly apart."""
    unique = [thing for thing in _across(view) if view.count(Query(thing.color, thing.shape)) == 1]
    triples = [
        (a, b, c)
        for i, a in enumerate(unique)
        for j, b in enumerate(unique[i + 1 :], i + 1)
        for c in unique[j + 1 :]
        if lateral_gap(view, b, a) and lateral_gap(view, c, b)
    ]
    if not triples:
        return None
    a, b, c = _pick(rng, triples)
    reason = f"the {a.name} is left of the {b.name} and the {b.name} is left of the {c.name}, so"
    first, second, side = _pick(rng, ((a, c, "left"), (c, a, "right"), (a, c, "right"), (c, a, "left")))
    is_true = (first is a) == (side == "left")
    question = f"is the {first.name} {side} of the {second.name}, going by the {b.name}?"
    return question, f"{reason} {'yes' if is_true else 'no'}"


def _conversation(view: View, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Turns about the leftmost or rightmost object and its neighbor, if these are clear."""
    row, side, other = _across(view), "left", "right"
    if rng.random() < 0.5:
        row, side, other = row[::-1], "right", "left"
    turns = [("how many objects are there?", str(len(row)))]
    if len(row) < 2 or not lateral_gap(view, row[0], row[1]):
        return turns
    first, second = row[:2]
    turns.append((f"what is farthest to the {side}?", f"{_article(first.name)} {first.name}"))
    if len(row) == 2 or lateral_gap(view, row[1], row[2]):
        turns.append((f"and what is next to it on the {other}?", f"{_article(second.name)} {second.name}"))
        gap = depth_gap(first, second)
        if gap:
            nearer = second if gap > 0 else first
            turns.append(("which of the two is closer to the robot?", f"the {nearer.name}"))
    turns.append((f"what color is the object farthest to the {side}, once more?", first.color))
    return turns


def _closest(view: View) -> SceneObject | None:
    """The object that is clearly closest to the robot and has a unique name, if there is one."""
    for thing in view.visible:
        is_unique = view.count(Query(thing.color, thing.shape)) == 1
        if len(view.visible) > 1 and is_unique and all(o is thing or depth_gap(o, thing) > 0 for o in view.visible):
            return thing
    return None


def _across(view: View) -> list[SceneObject]:
    return sorted(view.visible, key=lambda thing: thing.centers[view.camera])


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _listed(phrases: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(phrases[:-1]), *phrases[-1:])))


def _pick[T](rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]

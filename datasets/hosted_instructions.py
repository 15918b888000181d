"""Instruction data that a hosted language model generates from a textual description of an image.

The model gets no image, only a caption and the position of each object, as for LLaVA's data (Liu et al. 2023, arXiv
2304.08485, sec. 3).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vla.common.scene_objects import Scene
from vla.datasets.instructions import caption
from vla.datasets.questions import MAIN_CAMERA, Question, View, point_answer
from vla.datasets.vqa import CONVERSATION
from vla.errors import InputError
from vla.models.backbones.hosted import Hosted

FORMAT = (
    "Write it as one who looks at the picture; never mention the caption or the list. Ask and tell only what follows "
    "from them for certain. Each turn is a line 'Q: …' and a line 'A: …', and nothing else is written."
)
TASKS = {
    CONVERSATION: "Write a conversation of three to five turns about what is there, how many, and where.",
    "detail": "Write one turn: a request to describe the picture in detail, and the description.",
    "reasoning": "Write one turn: a question that needs reasoning about the objects, and the reasons, then the answer.",
}
"""The task for the model, by kind of question."""
TURN = re.compile(r"^Q:[ \t]*(\S.*)\n+A:[ \t]*(\S.*)$", re.MULTILINE)


def facts(scene: Scene, camera: str = MAIN_CAMERA) -> str:
    """The scene as text: a caption, and the center of each object in percent of the image's width and height."""
    view = View.of(scene, camera)
    positions = [f"{thing.name}: {point_answer(thing.centers[camera])}" for thing in view.visible]
    return "\n".join((f"Caption: {caption(view)}", "Objects (x right, y down, percent of the image):", *positions))


def hosted_instructions(
    scenes: Sequence[Scene], hosted: Hosted, camera: str = MAIN_CAMERA
) -> list[tuple[Question, ...]]:
    """The questions and answers that the model generates for each scene, in lower case.

    Model outputs that do not follow the requested format are skipped. Raises InputError if none follows it, and the
    errors of `Hosted.answer`.
    """
    prompts = [f"{facts(scene, camera)}\n\n{task} {FORMAT}" for scene in scenes for task in TASKS.values()]
    answers = iter(hosted.answer(prompts, role="plain"))
    made = [tuple(q for kind in TASKS for q in _read(kind, next(answers).text, camera)) for _ in scenes]
    if scenes and not any(made):
        raise InputError(f"{hosted.model} wrote no turn of the form 'Q: …', 'A: …': choose another model")
    return made


def _read(kind: str, text: str, camera: str) -> list[Question]:
    turns = [(q.strip().lower(), a.strip().lower()) for q, a in TURN.findall(text)]
    return [Question(kind, q, a, camera) for q, a in (turns if kind == CONVERSATION else turns[:1])]

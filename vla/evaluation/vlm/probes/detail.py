"""Fine detail: the smallest legible letters, and the smallest distinguishable differences of color and size.

The images are synthetic. A threshold is the level at which a psychometric curve is halfway between chance and its
maximum (Wichmann and Hill 2001), in the unit of its task. A threshold of twice the largest level means that no level is
distinguished.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from vla.evaluation.vlm.probes.probe import Probe
from vla.evaluation.vlm.probes.scenes import SIZE
from vla.evaluation.vlm.scoring.benchmark import Benchmark, Unit, question_prompt, ratio
from vla.evaluation.vlm.scoring.files import Answers, Entry
from vla.evaluation.vlm.scoring.yesno import yes_or_no
from vla.evaluation.vlm.vqa import normalize_answer

LETTERS = "ACEFHKLMNPRTUVWXY"
LAPSE = 0.02
"""The rate of wrong answers at clearly visible levels."""
SLOPES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Slopes of the logistic curve, per doubling of the level."""


@dataclass(frozen=True)
class Task:
    """A task with its levels; `guess` is the accuracy by chance."""

    levels: tuple[float, ...]
    guess: float


TASKS = {
    "text_px": Task((4, 6, 8, 12, 16, 24, 32), 0.0),
    "color_step": Task((3, 6, 12, 24, 48, 96), 0.5),
    "size_percent": Task((2, 4, 8, 16, 32, 64), 0.5),
}
WIDEST = max(len(task.levels) for task in TASKS.values())


def entries(n: int, seed: int) -> dict[str, Entry]:
    """N questions per task, with its levels in turn and both answers equally often at each level."""
    found: dict[str, Entry] = {}
    for number, (name, task) in enumerate(TASKS.items()):
        for i in range(n):
            level, odd = i % len(task.levels), i // len(task.levels) % 2 == 1
            rng = np.random.default_rng([seed, number, i])
            image, question, answer = DRAW[name](task.levels[level], odd, rng)
            found[f"{name}/{i}"] = {
                "image": image,
                "question": question,
                "answer": answer,
                "task": name,
                "level": level,
            }
    return found


def _text(height: float, odd: bool, rng: np.random.Generator) -> tuple[UInt8[np.ndarray, "h w 3"], str, str]:
    """Three letters `height` px high."""
    word = "".join(rng.choice(list(LETTERS), 3))
    # The height of a capital letter is a fraction of the font size.
    font = ImageFont.load_default(height / 0.73)
    image = Image.new("RGB", (SIZE, SIZE), "white")
    x, y = (float(rng.uniform(10, SIZE - 100)), float(rng.uniform(10, SIZE - 60)))
    ImageDraw.Draw(image).text((x, y), word, "black", font)
    return np.asarray(image), "what does the text say?", word


def _color(step: float, odd: bool, rng: np.random.Generator) -> tuple[UInt8[np.ndarray, "h w 3"], str, str]:
    """Two squares of the same color, or of colors at a Euclidean distance of `step` in RGB."""
    turn = rng.normal(size=3)
    color = rng.uniform(100, 156, size=3)
    other = color if odd else color + step * turn / np.linalg.norm(turn)
    image = Image.new("RGB", (SIZE, SIZE), "white")
    for x, rgb in ((30, color), (124, other)):
        red, green, blue = (int(v) for v in np.round(rgb))
        ImageDraw.Draw(image).rectangle((x, 77, x + 70, 147), (red, green, blue))
    return np.asarray(image), "are the two squares the same color?", "yes" if odd else "no"


def _size(percent: float, odd: bool, rng: np.random.Generator) -> tuple[UInt8[np.ndarray, "h w 3"], str, str]:
    """Two discs, one wider by `percent`."""
    small = float(rng.uniform(20, 28))
    large = small * (1 + percent / 100)
    scale = 4  # drawn larger, so that differences below a pixel show
    image = Image.new("RGB", (SIZE * scale, SIZE * scale), "white")
    for x, radius in ((60, large if odd else small), (164, small if odd else large)):
        box = [scale * v for v in (x - radius, 112 - radius, x + radius, 112 + radius)]
        ImageDraw.Draw(image).ellipse(box, (40, 60, 160))
    return (
        np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX)),
        ("which disc is larger, left or right?"),
        "left" if odd else "right",
    )


DRAW = {"text_px": _text, "color_step": _color, "size_percent": _size}


def right(entry: Entry, prediction: str) -> bool:
    """Whether a prediction is correct by the rule of its task."""
    if entry["task"] == "text_px":
        return re.sub(r"[^a-z]", "", prediction.lower()) == entry["answer"].lower()
    if entry["task"] == "color_step":
        return yes_or_no(prediction) == entry["answer"]
    words = set(normalize_answer(prediction).split())
    return entry["answer"] in words and not {"left", "right"} <= words


def thresholds(
    task: Task, correct: Float[np.ndarray, "k l"], total: Float[np.ndarray, "k l"]
) -> Float[np.ndarray, " k"]:
    """The thresholds of the most likely curves, from half the first level to twice the last.

    Args:
        task: The task.
        correct: The number of correct answers by level.
        total: The number of answers by level.
    """
    x = np.log2(task.levels)
    levels = np.linspace(x[0] - 1, x[-1] + 1, 97)
    grid = [(level, slope) for slope in SLOPES for level in levels]
    at, slope = np.array(grid).T[:, :, None]
    reached = 1 - task.guess - LAPSE
    likely = task.guess + reached / (1 + np.exp(-2 * slope * (x - at)))
    likely = np.clip(likely, 1e-6, 1 - 1e-6)
    fit = correct @ np.log(likely).T + (total - correct) @ np.log(1 - likely).T
    return np.asarray(2 ** at[:, 0][fit.argmax(1)])


def _units(questions: Mapping[str, Entry], predictions: Answers) -> list[Unit]:
    """Sums: correct answers and answers, of each level of each task."""
    units = []
    for i, entry in questions.items():
        cells = np.zeros((len(TASKS), WIDEST, 2))
        cells[list(TASKS).index(entry["task"]), entry["level"]] = right(entry, predictions[i]), 1
        level = f"{TASKS[entry['task']].levels[entry['level']]:2g}"
        units.append(Unit(tuple(cells.ravel().tolist()), (("task", entry["task"]), (entry["task"], level))))
    return units


def _rates(sums: Float[np.ndarray, "k d"]) -> dict[str, Float[np.ndarray, " k"]]:
    cells = sums.reshape(len(sums), len(TASKS), WIDEST, 2)
    overall = cells.sum((1, 2))
    found = {"accuracy": ratio(overall[:, 0], overall[:, 1])}
    for number, (name, task) in enumerate(TASKS.items()):
        counts = cells[:, number, : len(task.levels)]
        found[name] = thresholds(task, counts[..., 0], counts[..., 1])
    return found


def _error(entry: Entry, prediction: str) -> float:
    """An error at a clearer level weighs more."""
    return 0.0 if right(entry, prediction) else 1.0 + entry["level"]


DETAIL = Probe(entries, Benchmark(_units, _rates, question_prompt()), _error)

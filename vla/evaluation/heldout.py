"""Held-out evaluation in training: accuracy by kind of question, and action error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import batched

import numpy as np
from jaxtyping import Float

from vla.common.stored_image import decoded
from vla.datasets.vqa import VqaStore
from vla.datasets.windows import Windows
from vla.evaluation.vlm.vqa import DESCRIPTIONS, score
from vla.kinematics.action_space import difference
from vla.models.vla import VLA
from vla.types import Example, Observation

SHORT, LONG = 8, 64
"""Maximum tokens of a short answer and of a description."""


def vqa_accuracy(model: VLA, questions: Mapping[str, Sequence[Example]], batch_size: int = 64) -> dict[str, float]:
    """The mean score of greedy answers by kind of question."""
    accuracy = {}
    for kind, examples in questions.items():
        scores = []
        for group in batched(examples, batch_size):
            batch = model.processor.question_prompt([e.prompt for e in group], [e.images for e in group])
            answers = model.generate_text(batch, max_tokens=LONG if kind in DESCRIPTIONS else SHORT)
            scores += [score(kind, a, str(e.target)) for a, e in zip(answers, group, strict=True)]
        accuracy[kind] = float(np.mean(scores))
    return accuracy


def action_error(model: VLA, examples: Sequence[Example], batch_size: int = 64) -> float:
    """The mean error as a share of the data's range (`action_errors`)."""
    return action_errors(model, examples, batch_size)[0]


def action_errors(model: VLA, examples: Sequence[Example], batch_size: int = 64) -> tuple[float, dict[str, float]]:
    """Mean absolute errors of predicted action chunks, on steps inside the episode.

    An invalid action chunk counts as a hold action, which is what the robot then executes.

    Args:
        model: The policy.
        examples: Held-out windows of one robot.
        batch_size: Examples per prediction.

    Returns:
        The mean over all predicted components as a share of their range in the data, and the error of each action
        component in its unit.
    """
    robot = model.processor.robot(examples[0].embodiment)
    body = robot.embodiment
    shares: list[float] = []
    errors: list[Float[np.ndarray, "a"]] = []
    for group in batched(examples, batch_size):
        observations = [
            Observation(decoded(e.images), e.state, e.prompt, 0.0, tuple(map(decoded, e.past)))
            for e in group
            if e.state is not None
        ]
        chunks, _ = model.generate_actions(model.processor.robot_prompt(observations, robot.name))
        for example, observation, chunk in zip(group, observations, chunks, strict=True):
            target = np.asarray(example.target)
            if chunk is None:
                actions = np.broadcast_to(body.hold_action(observation.state), target.shape)
            else:
                actions = robot.denormalize_actions(chunk, observation.state)
            valid = slice(None) if example.mask is None else example.mask
            ours, theirs = (robot.normalize_actions(chunk, observation.state) for chunk in (actions, target))
            shares.append(float(np.abs(ours - theirs)[valid].mean()) / 2)  # the normalised range is [-1, 1]
            errors.append(np.abs(difference(body, actions, target))[valid].mean(axis=0))
    means = np.mean(errors, axis=0).tolist()
    return float(np.mean(shares)), dict(zip(body.action, means, strict=True))


def heldout_by_kind(store: VqaStore, count: int, among: Sequence[str] | None = None) -> dict[str, list[Example]]:
    """Up to `count` held-out questions of each kind (of `among`, or all), evenly spaced over the store."""
    if count < 1:
        return {}
    kinds = sorted({question.kind for question in store.questions("held-out")})
    kinds = [kind for kind in kinds if among is None or kind in among]
    return {kind: spread(store.examples("held-out", kinds=[kind]), count) for kind in kinds}


def spread(examples: Sequence[Example] | Windows, count: int) -> list[Example]:
    """Up to `count` of the examples, evenly spaced."""
    indices = np.unique(np.linspace(0, len(examples) - 1, min(count, len(examples))).astype(int))
    return [examples[int(i)] for i in indices] if len(examples) else []

"""The choice of a training example's instruction if the episode has sub-tasks (`Span`) besides its instruction."""

from __future__ import annotations

from collections.abc import Sequence

from vla.datasets.episode_index import EpisodeRecord
from vla.errors import InputError
from vla.types import instructions_at, one_after_another

INSTRUCTIONS = ("both", "span", "episode")


def check_choice(choice: str) -> None:
    """Raises InputError if the choice is not one of `INSTRUCTIONS`."""
    if choice not in INSTRUCTIONS:
        raise InputError(f"instruction={choice}: choose of {', '.join(INSTRUCTIONS)}")


def prompts_at(record: EpisodeRecord, step: int, choice: str) -> Sequence[tuple[str, ...]]:
    """The instructions that apply to a step of an episode, in groups of equal probability.

    Within a group, all instructions are equally likely. The first one of the first group is the step's main
    instruction. By `choice`, the groups are:

    - "episode": the episode's instruction in all of its phrasings, for every step.
    - "span": the sub-tasks that cover the step, or the episode's instruction if there are none.
    - "both": these two groups. The episode's group is omitted if its instruction is merely one of the sub-tasks, which
      does not apply to the other steps, or their concatenation, which the import of a dataset generates if the task
      changes within an episode.
    """
    phrasings = (record.instruction, *record.paraphrases)
    spans = instructions_at(record.spans, step)
    if choice == "episode" or not spans:
        return [phrasings]
    # A sub-task equal to the episode's instruction has the same phrasings.
    sub_tasks = tuple(text for span in spans for text in (phrasings if span == record.instruction else (span,)))
    texts = [span.instruction for span in record.spans]
    is_distinct = record.instruction not in ("", *texts, one_after_another(texts))
    return [sub_tasks, phrasings] if choice == "both" and is_distinct else [sub_tasks]

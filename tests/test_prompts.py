"""Which instruction each step is trained with: that of its own task, where an episode has several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_store
from hypothesis import given
from hypothesis import strategies as st

from tests.lerobot_recordings import STEPS, recording
from vla.commands import cli
from vla.datasets.episode_index import EpisodeRecord
from vla.datasets.episodes import EpisodeStore
from vla.datasets.prompts import INSTRUCTIONS, prompts_at
from vla.datasets.windows import Windows
from vla.errors import InputError
from vla.training import run
from vla.training.run_options import RunOptions
from vla.types import Episode, Span

Make = Callable[..., Episode]
DRAWER, CUP = "open the drawer", "take the cup"


def record(spans: list[Span], instruction: str = "tidy up", paraphrases: tuple[str, ...] = ()) -> EpisodeRecord:
    return EpisodeRecord(0, 10, instruction, True, {}, 0, paraphrases=paraphrases, spans=tuple(spans))


starts = st.tuples(st.integers(0, 8), st.integers(1, 9), st.sampled_from("abc")).map(
    lambda s: Span(s[0], min(s[0] + s[1], 10), s[2])
)


@given(
    st.lists(starts, max_size=5), st.integers(0, 9), st.sampled_from(INSTRUCTIONS), st.sampled_from(["a", "tidy up"])
)
def test_a_step_is_asked_for_nothing_but_its_own(spans: list[Span], step: int, choice: str, instruction: str) -> None:
    groups = prompts_at(record(spans, instruction), step, choice)
    covering = {span.instruction for span in spans if span.start <= step < span.stop}
    texts = {text for group in groups for text in group}
    assert groups[0] and len(texts) == sum(map(len, groups))
    if choice == "episode" or not covering:
        assert texts == {instruction}
    elif choice == "span" or instruction in {span.instruction for span in spans}:
        assert texts == covering
    else:
        assert (set(groups[0]), groups[1:]) == (covering, [(instruction,)])


def test_other_phrasings_go_with_the_instruction_that_they_say() -> None:
    labelled = record([Span(0, 5, DRAWER), Span(5, 10, CUP)], DRAWER, ("pull the drawer",))
    assert prompts_at(labelled, 0, "both") == [(DRAWER, "pull the drawer")]
    assert prompts_at(labelled, 5, "both") == [(CUP,)]
    whole = record([Span(0, 5, DRAWER)], "tidy up", ("clean",))
    assert prompts_at(whole, 0, "both") == [(DRAWER,), ("tidy up", "clean")]
    assert prompts_at(whole, 7, "span") == [("tidy up", "clean")]
    # An episode that is not labelled as a whole, or by a list.
    assert prompts_at(record([Span(0, 5, DRAWER), Span(5, 9, CUP)], f"{DRAWER}, then {CUP}"), 6, "both") == [(CUP,)]
    assert prompts_at(record([Span(0, 5, DRAWER)], ""), 0, "both") == [(DRAWER,)]


def test_an_episode_of_two_tasks_trains_each_step_by_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording(tmp_path / "set", tasks=[DRAWER] * 3 + [CUP] * 3)
    path = str(tmp_path / "store.zarr")
    assert cli.main(["convert", str(tmp_path / "set"), path]) == 0
    windows = Windows(EpisodeStore.open(path), horizon=2)
    expected = [DRAWER if i % STEPS < 3 else CUP for i in range(len(windows))]
    assert [windows[i].prompt for i in range(len(windows))] == expected
    for seed in range(3):
        rng = np.random.default_rng(seed)
        assert [windows.example(i, rng).prompt for i in range(len(windows))] == expected
    labelled = Windows(EpisodeStore.open(path), horizon=2, instruction="episode")
    assert {labelled[i].prompt for i in range(len(labelled))} == {f"{DRAWER}, then {CUP}"}
    capsys.readouterr()
    assert cli.main(["data", "info", path]) == 0
    said = capsys.readouterr().out
    assert f"3 x {DRAWER} (" in said and f"3 x {CUP} (" in said
    assert cli.main(["data", "filter", path, f"out={tmp_path / 'cups.zarr'}", "instruction=*cup"]) == 0
    assert len(EpisodeStore.open(tmp_path / "cups.zarr")) == 3


def test_either_is_drawn_where_an_episode_has_a_whole_and_parts(make_episode: Make, tmp_path: Path) -> None:
    spans = (Span(0, 3, "reach"), Span(2, 4, "grip"))
    episode = make_episode(steps=5, instruction="tidy up", paraphrases=("clean",), spans=spans)
    with EpisodeStore.create(tmp_path / "store", episode.embodiment) as store:
        store.append(episode)
    windows, rng = Windows(store, horizon=2), np.random.default_rng(0)
    assert [windows[i].prompt for i in range(5)] == ["reach", "reach", "reach", "grip", "tidy up"]
    drawn = Counter(windows.example(2, rng).prompt for _ in range(400))
    # Half of the draws are of the whole, half of the parts, which overlap at this step.
    assert drawn.keys() == {"tidy up", "clean", "reach", "grip"} and min(drawn.values()) > 60
    spans_only = Windows(store, horizon=2, instruction="span")
    assert {spans_only.example(2, rng).prompt for _ in range(40)} == {"reach", "grip"}


def test_training_draws_evaluates_and_reads_the_words_of_sub_tasks(
    make_episode: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = [
        make_episode(
            seed, steps=6, instruction=DRAWER, paraphrases=("pull",), spans=(Span(0, 3, DRAWER), Span(3, 6, CUP))
        )
        for seed in range(3)
    ]
    write_store(tmp_path / "store", episodes)
    seen: dict[str, Any] = {}
    real = run.build

    def build(backbone: Any, robots: Any, texts: Any, *rest: Any) -> Any:
        seen["texts"] = list(texts)
        return real(backbone, robots, seen["texts"], *rest)

    monkeypatch.setattr(run, "build", build)

    def note(questions: Any, windows: Any) -> Any:
        seen.update(windows)
        return dict

    monkeypatch.setattr("vla.training.run_data.HeldoutScores", note)

    def run_plan(model: Any, mixture: Any, *rest: Any) -> run.Outcome:
        seen["batch"] = mixture.batch(0, 60)
        return run.Outcome(0, True, None, [])

    monkeypatch.setattr("vla.training.cotrain.train", run_plan)
    options = {"vqa": {}, "out": str(tmp_path / "run"), "backbone": "scratch", "mixture": {"robot": 1.0}, "horizon": 2}
    options |= {
        "turns": 1,
        "heldout_questions": 0,
        "plan": {"steps": 1, "batch_size": 1},
        "data": str(tmp_path / "store"),
    }
    run.train(RunOptions(**options))
    assert {f" {DRAWER}", " pull", f" {CUP}"} <= set(seen["texts"])
    assert [example.prompt for example in seen["robot"]] == [DRAWER, CUP]
    assert {example.prompt for example in seen["batch"]} == {DRAWER, "pull", CUP}
    run.train(RunOptions(**options, instruction="episode"))
    assert {example.prompt for example in seen["batch"]} == {DRAWER, "pull"}
    with pytest.raises(InputError, match="instruction=task: choose of both, span, episode"):
        run.train(RunOptions(**options, instruction="task"))


def test_a_film_shows_the_sub_task_of_each_moment(make_episode: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from vla.recording import video

    shown: list[str] = []
    monkeypatch.setattr(video, "_write", lambda draw, text, y, width: shown.append(text))
    episode = make_episode(steps=4, instruction=DRAWER, spans=(Span(0, 2, DRAWER), Span(2, 3, CUP)))
    assert len(list(video.compose(replace(episode, success=True)))) == 4
    assert shown[::2] == [DRAWER, DRAWER, CUP, DRAWER]

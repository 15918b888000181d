"""Evaluations in several processes, killed and resumed: the same results and episodes, whatever happened between."""

from __future__ import annotations

import os
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_env import ROBOT, Bad, BadEnv, BatchEcho, Counting, Echo, Elsewhere, Rude, ToyEnv, load

from vla.datasets.episodes import EpisodeStore
from vla.errors import InputError
from vla.evaluation.evaluate import _decided, run
from vla.evaluation.rollouts.result_store import ResultStore, key_of, read_results
from vla.evaluation.rollouts.summary import summarize
from vla.evaluation.rollouts.trial import Key, Result, Trial
from vla.evaluation.rollouts.workers import Job, _Worker
from vla.types import Episode

TRIALS = [Trial(seed, {"add": 10 * (seed % 2)}, "named") for seed in range(12, 25)]


def job(kind: type[Echo], env: type[ToyEnv] = ToyEnv, parallel: int = 2) -> Job:
    return Job(env, partial(load, kind), ROBOT, parallel, n_action_steps=2, every_frame=True)


def outcome(folder: Path) -> tuple[dict[Key, Result], dict[Key, Episode]]:
    with EpisodeStore.open(folder / "rollouts.zarr") as store:
        episodes = {key_of(episode.info): episode for episode in store}
    return read_results(folder), episodes


def run_all(folder: Path, work: Job, workers: int, trials: list[Trial] = TRIALS) -> None:
    with ResultStore(folder, {"policy": "toy"}, ROBOT) as ledger:
        run(work, trials, workers, ledger)


def assert_same(one: Path, other: Path) -> None:
    (results, episodes), (also, others) = outcome(one), outcome(other)
    assert results == also and episodes.keys() == others.keys() == results.keys()
    for key, episode in episodes.items():
        for name in ("state", "action", "time", "chunks"):
            np.testing.assert_array_equal(getattr(episode, name), getattr(others[key], name))
        np.testing.assert_array_equal(episode.images["front"], others[key].images["front"])
        assert (episode.instruction, episode.success) == (others[key].instruction, others[key].success)


@pytest.mark.parametrize("kind", [BatchEcho, Counting])
def test_processes_and_environments_do_not_change_the_result(tmp_path: Path, kind: type[Echo]) -> None:
    run_all(tmp_path / "one", job(kind, parallel=1), 1)
    run_all(tmp_path / "many", job(kind, parallel=4), 2)
    assert_same(tmp_path / "one", tmp_path / "many")
    results, _ = outcome(tmp_path / "one")
    assert all(r.instruction == f"go to {r.seed + 10 * (r.seed % 2)}" for r in results.values())


def test_a_process_that_dies_takes_its_trials_along_and_no_others(tmp_path: Path) -> None:
    # The one that kills comes last, so that it takes neither of the other two that crash along.
    trials = [Trial(seed, {}, "named") for seed in (*range(4, 7), *range(8, 20), 7)]
    run_all(tmp_path, job(Bad, BadEnv), 2, trials)
    results, episodes = outcome(tmp_path)
    crashes = {r.seed: r.crash for r in results.values() if r.crash}
    assert {6, 7, 14} <= crashes.keys() and len(crashes) <= 4 and len(results) == 16
    assert "I do not like 6" in crashes[6] and "code 3" in crashes[7] and "out of order" in crashes[14]
    assert len(episodes) == 16 - len(crashes)
    summary = summarize(list(results.values()))
    assert (summary["episodes"], summary["crashed"]) == (len(episodes), len(crashes))


def test_a_process_that_ends_badly_after_its_last_trial_has_done_its_work(tmp_path: Path) -> None:
    run_all(tmp_path, job(Rude), 2)
    assert len(outcome(tmp_path)[1]) == len(TRIALS)


def test_a_process_may_die_at_any_moment() -> None:
    worker = object.__new__(_Worker)
    worker.connection, theirs = Pipe()
    worker.started, worker.finished = {}, False
    os.write(theirs.fileno(), b"\0\0\1\0, of which this is the begin")
    theirs.close()
    worker.send(TRIALS[0])
    assert worker.receive() == ("gone", None) and [*worker.started.values()] == TRIALS[:1]


def test_a_refusal_reaches_the_parent(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cameras"), ResultStore(tmp_path, {}, ROBOT) as ledger:
        run(job(Elsewhere), TRIALS, 2, ledger)


def test_what_was_killed_goes_on_and_runs_nothing_twice(tmp_path: Path) -> None:
    run_all(tmp_path / "straight", job(BatchEcho), 1)

    class Killed(Exception):
        """As SIGKILL would, in the middle of an append."""

    with pytest.raises(Killed), ResultStore(tmp_path / "cut", {"policy": "toy"}, ROBOT) as ledger:
        note, seen = ledger.note, []

        def note_some(result: Result) -> None:
            seen.append(result)
            if len(seen) > 5:
                raise Killed
            note(result)

        ledger.note = note_some  # type: ignore[method-assign]
        run(job(BatchEcho), TRIALS, 1, ledger)
    with (tmp_path / "cut/results.jsonl").open("a") as lines:
        lines.write('{"seed": 17, "gro')
    before = read_results(tmp_path / "cut")
    assert len(before) == 5
    with ResultStore(tmp_path / "cut", {"policy": "toy"}, ROBOT) as ledger:
        # The sixth episode was stored, and its result was not.
        assert len(ledger.missing(TRIALS)) == len(TRIALS) - 5
        run(job(BatchEcho), TRIALS, 1, ledger)
    assert_same(tmp_path / "straight", tmp_path / "cut")
    with EpisodeStore.open(tmp_path / "cut/rollouts.zarr") as store:
        assert len(store) == len(TRIALS)


def test_a_crash_is_run_again(tmp_path: Path) -> None:
    trials = [Trial(seed, {}, "named") for seed in (4, 6)]
    run_all(tmp_path, job(Bad), 1, trials)
    run_all(tmp_path, job(BatchEcho), 1, trials)
    results, episodes = outcome(tmp_path)
    assert [r.crash for r in results.values()] == ["", ""] and len(episodes) == 2


def test_an_episode_is_that_of_its_result_whatever_the_execution(tmp_path: Path) -> None:
    run_all(tmp_path, job(BatchEcho), 1, [Trial(12, {}, "named", execution="rtc")])
    results, episodes = outcome(tmp_path)
    assert results.keys() == episodes.keys()


def test_folders_are_merged(tmp_path: Path) -> None:
    run_all(tmp_path / "straight", job(BatchEcho), 1)
    run_all(tmp_path / "a", job(BatchEcho), 1, TRIALS[:5])
    run_all(tmp_path / "b", job(BatchEcho), 1, TRIALS[3:])
    with (tmp_path / "b/results.jsonl").open("a") as lines:
        lines.write('{"seed": 17, "gro')
    with ResultStore(tmp_path / "all", {"policy": "toy"}, ROBOT) as ledger:
        for name in "ab":
            ledger.copy_from(tmp_path / name)
        assert ledger.missing(TRIALS) == []
    # Another process may be writing that line.
    assert (tmp_path / "b/results.jsonl").read_text().endswith('{"seed": 17, "gro')
    assert_same(tmp_path / "straight", tmp_path / "all")


def test_other_settings_and_other_folders_are_refused(tmp_path: Path) -> None:
    run_all(tmp_path / "a", job(BatchEcho), 1, TRIALS[:1])
    with pytest.raises(InputError, match=r"other settings \(policy\)"):
        ResultStore(tmp_path / "a", {"policy": "another"}, ROBOT)
    with pytest.raises(InputError, match="holds no evaluation"):
        ResultStore(tmp_path, {}, ROBOT)


def test_it_stops_when_the_rate_is_told_in_the_order_of_the_trials() -> None:
    trials = [Trial(seed, {}, "named") for seed in range(40)]

    def ended(seeds: range, success: bool) -> dict[Key, Result]:
        values: dict[str, Any] = {"instruction": "", "wrong_object": False, "length": 3, "invalid": 0}
        return {r.key: r for r in (Result(s, "named", success=success, **values) for s in seeds)}

    # Successes end first: they say nothing until the trials before them have ended too.
    assert not _decided(trials, ended(range(1, 40), True), 0.5)
    assert _decided(trials, ended(range(40), True), 0.5)
    assert not _decided(trials, ended(range(40), True), 0.97)
    summary = summarize(list(ended(range(40), True).values()), stop=0.5)
    assert summary["stopped_after"] == summary["episodes"] < 12


def test_what_is_left_of_late_chunks_fits_the_store_of_whole_ones(tmp_path: Path) -> None:
    late = [Trial(seed, {}, "named", delay=delay, execution="chunked") for delay in (0.2, 0.0) for seed in (12, 13)]
    run_all(tmp_path, job(BatchEcho), 1, late)
    _, episodes = outcome(tmp_path)
    chunks = [episode.chunks for episode in episodes.values()]
    assert {c.shape[1:] for c in chunks if c is not None} == {(3, 2)} and len(chunks) == 4

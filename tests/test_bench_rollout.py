"""`vla bench rollout`: its episodes end alike for all, and it runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from toy_env import ToyEnv

from vla.benchmarks import rollout
from vla.evaluation.rollouts.trial import Result, Trial


def lengths(seeds: range) -> Iterator[int]:
    env = rollout.Ends(ToyEnv())
    for seed in seeds:
        env.reset(seed=seed)
        ended, steps = False, 0
        while not ended and steps < 100:
            # The toy's own end, which comes once, is not looked at.
            env.env.unwrapped.actions.clear()  # type: ignore[attr-defined]
            *_, ended, _, _ = env.step(np.zeros(2))
            steps += 1
        yield steps


def test_episodes_end_as_their_seeds_say() -> None:
    found = list(lengths(range(60)))
    assert found == list(lengths(range(60)))
    early = [length for length in found if length < 100]
    assert 0.6 < len(early) / len(found) < 0.95 and rollout.LENGTHS[0] <= min(early) <= max(early) < rollout.LENGTHS[1]


def test_our_episodes_of_a_round_are_those_of_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[int] = []

    def fake(_: object, trials: Iterable[Trial], *others: object) -> Iterator[Result]:
        for trial in trials:
            ran.append(trial.seed)
            yield Result(trial.seed, "", "", True, False, 30, 0)

    monkeypatch.setattr(rollout, "run_in_workers", fake)
    for turn in range(2):
        ran.clear()
        rollout._ours(tmp_path, "asked", turn)
        assert ran[rollout.ENVS :] == list(rollout.seeds(turn)) and not {*ran[: rollout.ENVS]} & {*rollout.seeds(turn)}
    assert not {*rollout.seeds(0)} & {*rollout.seeds(1)}


@pytest.mark.slow
def test_all_contestants_run_the_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lerobot_policy_vla")
    for name, value in {"ENVS": 2, "WAVES": 1, "ROUNDS": 1}.items():
        monkeypatch.setattr(rollout, name, value)
    table = rollout.bench_rollout()
    assert len(table.rows) == 4 and all(row["episodes/min"] > 0 for row in table.rows)

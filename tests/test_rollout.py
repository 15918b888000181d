from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from jaxtyping import Float
from toy_env import LENGTHS, ROBOT, Bad, BadEnv, BatchEcho, Counting, Echo, ToyEnv

from vla.errors import InputError
from vla.evaluation.rollouts.rollout import rollout
from vla.evaluation.rollouts.trial import Result, Trial
from vla.types import ActionChunk, Observation, RTCPrefix


class Log:
    """A recorder that keeps all it is told."""

    def __init__(self, episodes: list[dict[str, Any]]) -> None:
        self.episodes = episodes

    def start(self, instruction: str, **info: Any) -> None:
        self.episode: dict[str, Any] = {"instruction": instruction, "info": info, "steps": []}

    def step(self, observation: Observation, action: Float[np.ndarray, "a"], **info: Any) -> None:
        self.episode["steps"].append((observation, action, info))

    def finish(self, success: bool) -> None:
        self.episodes.append(self.episode | {"success": success})

    def abort(self) -> None:
        raise AssertionError("no episode of these is dropped")


TRIALS = tuple(Trial(seed, {"add": 100 * (seed % 4)}, "odd" if seed % 2 else "even") for seed in range(11))


def expected(trial: Trial) -> Result:
    number, length = trial.seed + trial.options["add"], LENGTHS[trial.seed % 3]
    # At 99 and beyond every command is at a limit of the toy.
    hits = length if number >= 99 else 0
    told = (trial.seed, trial.group, f"go to {number}", True, number % 5 == 0, length)
    return Result(*told, invalid=0, seconds=length / 10, limit_hits=hits)


@pytest.mark.parametrize("parallel", [1, 2, 3, 16])
@pytest.mark.parametrize("kind", [Echo, BatchEcho])
def test_environments_do_not_mix_however_many_run_at_once(kind: type[Echo], parallel: int) -> None:
    policy = kind()
    results = rollout(ToyEnv, lambda _: policy, TRIALS, parallel=parallel, n_action_steps=2)
    assert results == [expected(trial) for trial in TRIALS]


def test_a_shared_batch_policy_is_asked_for_all_at_once() -> None:
    policy = BatchEcho()
    rollout(ToyEnv, lambda _: policy, TRIALS[:4], parallel=4, n_action_steps=2)
    assert policy.asked[0] == 4
    assert len(policy.asked) < sum(policy.asked)


def test_each_environment_may_have_its_own_policy() -> None:
    made: list[BatchEcho] = []

    def policy_for(env: gymnasium.Env[Any, Any]) -> BatchEcho:
        made.append(BatchEcho())
        return made[-1]

    results = rollout(ToyEnv, policy_for, TRIALS, parallel=3)
    assert len(made) == 3
    assert results == [expected(trial) for trial in TRIALS]


@pytest.mark.parametrize(
    ("n_action_steps", "steps"), [(1, [0, 1, 2, 3, 4]), (2, [0, 1, 0, 1, 0]), (8, [0, 1, 2, 0, 1])]
)
def test_so_many_actions_of_a_chunk_are_carried_out(n_action_steps: int, steps: list[int]) -> None:
    episodes: list[dict[str, Any]] = []
    rollout(ToyEnv, lambda _: Echo(), [Trial(1)], n_action_steps=n_action_steps, recorder=lambda: Log(episodes))
    rest = [np.isfinite(info["chunk"][:, 0]).sum() for _, _, info in episodes[0]["steps"]]
    assert rest == ([3] * 5 if n_action_steps == 1 else [3 - used for used in steps])
    # The actions are those of their own time, whichever chunk they come from.
    assert [action[1] for _, action, _ in episodes[0]["steps"]] == [0, 1, 2, 3, 4]


def test_an_invalid_chunk_holds_the_last_action_and_is_counted() -> None:
    episodes: list[dict[str, Any]] = []
    policy = Echo(invalid=(0, 1, 3))
    (result,) = rollout(ToyEnv, lambda _: policy, [Trial(4)], n_action_steps=1, recorder=lambda: Log(episodes))
    assert result.invalid == 3
    actions = [tuple(action) for _, action, _ in episodes[0]["steps"]]
    # Without a last action the arm stays where it was at the start: at state (4, 0).
    assert actions == [(4, 0), (4, 0), (4, 2), (4, 2), (4, 4)]
    assert ["chunk" in info for _, _, info in episodes[0]["steps"]] == [False, False, True, False, True]


def test_the_recorder_gets_every_episode_whole() -> None:
    episodes: list[dict[str, Any]] = []
    results = rollout(ToyEnv, lambda _: Echo(), TRIALS, parallel=3, recorder=lambda: Log(episodes))
    by_seed = {episode["info"]["seed"]: episode for episode in episodes}
    assert len(episodes) == len(by_seed) == len(TRIALS)
    for result in results:
        episode = by_seed[result.seed]
        assert episode["info"] == {"seed": result.seed, "group": result.group}
        assert (episode["instruction"], episode["success"]) == (result.instruction, result.success)
        assert len(episode["steps"]) == result.length
        for i, (observation, action, info) in enumerate(episode["steps"]):
            assert observation.instruction == result.instruction
            assert (observation.time, observation.state[1]) == (i / 10, i)
            np.testing.assert_array_equal(info["chunk"][0], action)


def test_failure_is_reported() -> None:
    class Wrong(Echo):
        def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk | None:
            chunk = super().predict(observation)
            return None if chunk is None else replace(chunk, actions=chunk.actions + 1)

    assert [r.success for r in rollout(ToyEnv, lambda _: Wrong(), TRIALS[:3])] == [False] * 3


def test_a_policy_of_another_embodiment_names_the_component_and_closes_the_environments() -> None:
    envs: list[ToyEnv] = []

    def make_env() -> ToyEnv:
        envs.append(ToyEnv())
        return envs[-1]

    other = replace(ROBOT, action=("x [m]", "grip [rad]"))
    with pytest.raises(InputError, match=r"grip \[rad\].*y \[m\]"):
        rollout(make_env, lambda _: Echo(other), TRIALS, parallel=2)
    assert [env.closed for env in envs] == [True]


def test_an_error_closes_the_environments() -> None:
    envs: list[ToyEnv] = []

    def make_env() -> ToyEnv:
        envs.append(ToyEnv())
        return envs[-1]

    class Interrupted(Log):
        def finish(self, success: bool) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rollout(make_env, lambda _: Echo(), TRIALS, parallel=2, recorder=lambda: Interrupted([]))
    assert [env.closed for env in envs] == [True, True]


@pytest.mark.parametrize("parallel", [1, 3])
def test_what_raises_in_one_trial_leaves_the_others_alone(parallel: int) -> None:
    envs: list[ToyEnv] = []
    episodes: list[dict[str, Any]] = []

    def make_env() -> ToyEnv:
        envs.append(Stuck())
        return envs[-1]

    class Stuck(BadEnv):
        """What raised does not close either."""

        def close(self) -> None:
            super().close()
            if self.number == 14:
                raise RuntimeError("stuck")

    class Forgiving(Log):
        def abort(self) -> None:
            """Dropped."""

    trials = [Trial(seed) for seed in (4, 6, 14, 9, 10, 11)]
    bad = Bad()
    results = rollout(make_env, lambda _: bad, trials, parallel=parallel, recorder=lambda: Forgiving(episodes))
    assert [r.seed for r in results if r.crash] == [6, 14]
    assert "I do not like 6" in results[1].crash and "out of order" in results[2].crash
    assert [r.success for r in results if not r.crash] == [True] * 4
    assert sorted(e["info"]["seed"] for e in episodes) == [4, 9, 10, 11]
    # An environment that raised is not used again.
    assert all(env.closed for env in envs) and len(envs) == parallel + 2


def test_a_policy_that_remembers_is_reset_and_its_own() -> None:
    episodes: list[dict[str, Any]] = []
    rollout(ToyEnv, lambda _: Counting(), TRIALS, parallel=4, n_action_steps=2, recorder=lambda: Log(episodes))
    for episode in episodes:
        said = [action[1] for _, action, _ in episode["steps"]]
        assert said == [1, 1, 2, 2, 3][: len(said)]


def test_nothing_to_do_and_nothing_to_do_it_with() -> None:
    assert rollout(ToyEnv, lambda _: Echo(), []) == []
    make: Callable[[], ToyEnv] = ToyEnv
    for parallel, n_action_steps in ((0, 1), (1, 0)):
        with pytest.raises(InputError, match="at least 1"):
            rollout(make, lambda _: Echo(), TRIALS, parallel=parallel, n_action_steps=n_action_steps)

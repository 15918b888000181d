from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from jaxtyping import Float

from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.evaluation.rollout import Result, Trial, rollout
from vla.types import ActionChunk, Observation

ROBOT = Embodiment("toy", ("front",), ("x [m]", "y [m]"), ("x [m]", "y [m]"), (-99.0, -99.0), (99.0, 99.0), 10.0)
LENGTHS = (3, 5, 4)


class ToyEnv(gymnasium.Env[dict[str, Any], Float[np.ndarray, "a"]]):
    """Tells a number in its instruction; succeeds if every action's first component is that number."""

    def __init__(self) -> None:
        self.embodiment = ROBOT
        self.action_space = spaces.Box(-99, 99, (2,), np.float32)
        self.observation_space = spaces.Dict(
            images=spaces.Dict(front=spaces.Box(0, 255, (4, 4, 3), np.uint8)),
            state=spaces.Box(-99, 99, (2,), np.float32),
            instruction=spaces.Text(20),
        )
        self.actions: list[Float[np.ndarray, "a"]] = []
        self.closed = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        assert seed is not None
        self.number = seed + int((options or {}).get("add", 0))
        self.end, self.actions = LENGTHS[seed % 3], []
        return self._observe(), self._info()

    def step(self, action: Float[np.ndarray, "a"]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.actions.append(np.array(action))
        ended = len(self.actions) == self.end
        # An even seed meets its end as success, an odd one by the limit of its steps.
        return self._observe(), 0.0, ended and self.number % 2 == 0, ended and self.number % 2 == 1, self._info()

    def _observe(self) -> dict[str, Any]:
        steps = len(self.actions)
        return {
            "images": {"front": np.full((4, 4, 3), self.number % 256, np.uint8)},
            "state": np.array([self.number, steps], np.float32),
            "instruction": f"go to {self.number}",
        }

    def _info(self) -> dict[str, Any]:
        right = [a[0] == self.number for a in self.actions]
        return {
            "success": bool(right) and all(right),
            "wrong_object": self.number % 5 == 0,
            "instruction": f"go to {self.number}",
        }

    def close(self) -> None:
        self.closed = True


class Echo:
    """Answers with the number of the instruction, and the step in the second component."""

    def __init__(self, embodiment: Embodiment = ROBOT, horizon: int = 3, invalid: Sequence[int] = ()) -> None:
        self.embodiment, self.horizon, self.invalid = embodiment, horizon, set(invalid)
        self.asked: list[int] = []

    def reset(self) -> None:
        """Nothing is remembered."""

    def predict(
        self, observation: Observation, *, prefix: Float[np.ndarray, "k a"] | None = None
    ) -> ActionChunk | None:
        number, step = int(observation.instruction.split()[-1]), int(observation.state[1])
        assert observation.state[0] == number
        assert observation.time == step / 10
        if step in self.invalid:
            return None
        rows = [[number, step + i] for i in range(self.horizon)]
        return ActionChunk(np.array(rows, np.float64), observation.time, 0.1)


class BatchEcho(Echo):
    def predict_batch(
        self, observations: Sequence[Observation], *, prefix: Float[np.ndarray, "b k a"] | None = None
    ) -> list[ActionChunk | None]:
        self.asked.append(len(observations))
        return [self.predict(o) for o in observations]


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
    number = trial.seed + trial.options["add"]
    return Result(trial.seed, trial.group, f"go to {number}", True, number % 5 == 0, LENGTHS[trial.seed % 3], invalid=0)


@pytest.mark.parametrize("parallel", [1, 2, 3, 16])
@pytest.mark.parametrize("kind", [Echo, BatchEcho])
def test_environments_do_not_mix_however_many_run_at_once(kind: type[Echo], parallel: int) -> None:
    policy = kind()
    results = rollout(ToyEnv, lambda _: policy, TRIALS, parallel=parallel, execute=2)
    assert results == [expected(trial) for trial in TRIALS]


def test_a_shared_batch_policy_is_asked_for_all_at_once() -> None:
    policy = BatchEcho()
    rollout(ToyEnv, lambda _: policy, TRIALS[:4], parallel=4, execute=2)
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


@pytest.mark.parametrize(("execute", "steps"), [(1, [0, 1, 2, 3, 4]), (2, [0, 1, 0, 1, 0]), (8, [0, 1, 2, 0, 1])])
def test_so_many_actions_of_a_chunk_are_carried_out(execute: int, steps: list[int]) -> None:
    episodes: list[dict[str, Any]] = []
    rollout(ToyEnv, lambda _: Echo(), [Trial(1)], execute=execute, recorder=lambda: Log(episodes))
    rest = [len(info["chunk"]) for _, _, info in episodes[0]["steps"]]
    assert rest == ([3] * 5 if execute == 1 else [3 - used for used in steps])
    # The actions are those of their own time, whichever chunk they come from.
    assert [action[1] for _, action, _ in episodes[0]["steps"]] == [0, 1, 2, 3, 4]


def test_an_invalid_chunk_holds_the_last_action_and_is_counted() -> None:
    episodes: list[dict[str, Any]] = []
    policy = Echo(invalid=(0, 1, 3))
    (result,) = rollout(ToyEnv, lambda _: policy, [Trial(4)], execute=1, recorder=lambda: Log(episodes))
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


def test_done_is_told_of_every_result_once() -> None:
    told: list[Result] = []
    results = rollout(ToyEnv, lambda _: Echo(), TRIALS, parallel=4, done=told.append)
    assert sorted(told, key=lambda r: r.seed) == results


def test_failure_is_reported() -> None:
    class Wrong(Echo):
        def predict(
            self, observation: Observation, *, prefix: Float[np.ndarray, "k a"] | None = None
        ) -> ActionChunk | None:
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
    assert [env.closed for env in envs] == [True, True]


def test_an_error_closes_the_environments() -> None:
    envs: list[ToyEnv] = []

    def make_env() -> ToyEnv:
        envs.append(ToyEnv())
        return envs[-1]

    def stop(_: Result) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rollout(make_env, lambda _: Echo(), TRIALS, parallel=2, done=stop)
    assert [env.closed for env in envs] == [True, True]


def test_nothing_to_do_and_nothing_to_do_it_with() -> None:
    assert rollout(ToyEnv, lambda _: Echo(), []) == []
    make: Callable[[], ToyEnv] = ToyEnv
    for bad in ({"parallel": 0}, {"execute": 0}):
        with pytest.raises(InputError, match="at least 1"):
            rollout(make, lambda _: Echo(), TRIALS, **bad)

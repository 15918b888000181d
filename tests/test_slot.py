"""Time that passes while the policy thinks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from toy_env import ROBOT, ToyEnv

from vla.errors import InputError
from vla.evaluation.rollouts.episode_runner import EpisodeRunner
from vla.evaluation.rollouts.rollout import run_trials
from vla.evaluation.rollouts.summary import summarize
from vla.evaluation.rollouts.trial import Result, Trial, trials_for
from vla.types import ActionChunk, Observation, RTCPrefix


class Long(ToyEnv):
    """Twelve steps."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        found = super().reset(seed=seed, options=options)
        self.end = 12
        return found


class Clock:
    """Says (when it was asked, the step that the action is for), and keeps the prefixes that it was given."""

    def __init__(self, horizon: int = 6) -> None:
        self.embodiment, self.horizon = ROBOT, horizon
        self.asked: list[int] = []
        self.prefixes: list[list[list[float]] | None] = []

    def reset(self) -> None:
        """Nothing is remembered."""

    def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk:
        now = round(observation.time * 10)
        self.asked.append(now)
        self.prefixes.append(None if prefix is None else prefix.committed.tolist())
        rows = np.array([[now, now + i] for i in range(self.horizon)], np.float64)
        return ActionChunk(rows, observation.time, 0.1)


def actions(
    delay: float, execution: str, n_action_steps: int = 3, horizon: int = 6
) -> tuple[list[tuple[float, ...]], Clock]:
    env, clock = Long(), Clock(horizon)
    made: list[gymnasium.Env[Any, Any]] = []

    def make(**_: Any) -> Long:
        made.append(env)
        return env

    trial = Trial(50, delay=delay, execution=execution)
    (result,) = run_trials(make, lambda _: clock, iter([trial]), parallel=1, n_action_steps=n_action_steps)
    assert (result.delay, result.execution, result.length) == (delay, execution, 12) and made
    return [tuple(action) for action in env.actions], clock


REST = (50, 0)


def test_a_policy_that_is_waited_for_is_late_by_its_delay() -> None:
    said, clock = actions(0.2, "naive")
    assert said[:2] == [REST, REST]
    # What it saw at step 0 is done at steps 2 to 4; it is asked at 5, and the arm holds while it thinks.
    assert said[2:5] == [(0, 0), (0, 1), (0, 2)] and said[5:7] == [(0, 2)] * 2 and said[7] == (5, 5)
    assert clock.asked == [0, 5, 10] and clock.prefixes == [None] * 3


@pytest.mark.parametrize("execution", ["chunked", "rtc"])
def test_old_chunks_go_on_and_new_ones_begin_at_the_present(execution: str) -> None:
    said, clock = actions(0.2, execution)
    # The arm holds for the first answer, and then carries it out from its start.
    assert said[:5] == [REST, REST, (0, 0), (0, 1), (0, 2)]
    assert clock.asked == [0, 5, 8, 11]
    # From the second chunk on every action is the one for its own step, from the chunk that had arrived by then.
    assert said[5:7] == [(0, 3), (0, 4)]
    assert [step for _, step in said[7:]] == list(range(7, 12))
    assert [origin for origin, _ in said[7:]] == [5, 5, 5, 8, 8]
    # What is committed is what is carried out.
    committed = [None, [[0, 3], [0, 4]], [[5, 8], [5, 9]], [[8, 11], [8, 12]]]
    assert clock.prefixes == (committed if execution == "rtc" else [None] * 4)


def test_a_policy_is_asked_early_enough_for_its_chunks_to_last() -> None:
    said, clock = actions(0.2, "chunked", n_action_steps=9, horizon=5)
    # Two actions of five are left after three, at step 5.
    assert clock.asked[:2] == [0, 5] and said[2:7] == [(0, i) for i in range(5)] and said[7] == (5, 7)


@pytest.mark.parametrize(("late", "asked", "held"), [(3, 6, 1), (4, 7, 2), (6, 11, None)])
def test_a_chunk_that_ends_before_the_next_one_comes_is_held(late: int, asked: int, held: int | None) -> None:
    said, clock = actions(0.1 * late, "rtc", n_action_steps=9, horizon=5)
    # Two delays do not fit into five actions: the policy is asked with two of them left, or at the end if one does not.
    assert clock.asked[1] == asked
    first = [(0, i) for i in range(5)]
    assert said[late : late + 5] == first
    if held is not None:
        assert said[late + 5 :][:held] == [(0, 4)] * held
        # All that is left is committed, and then the arm stays.
        assert clock.prefixes[1] == [[0, 3], [0, 4], *[[0, 4]] * (late - 2)]
        assert said[late + 5 + held][0] == asked


@pytest.mark.parametrize("execution", ["naive", "chunked", "rtc"])
def test_without_a_delay_all_executions_are_one(execution: str) -> None:
    said, clock = actions(0.0, execution)
    assert said == [(3 * (i // 3), i) for i in range(12)] and clock.asked == [0, 3, 6, 9]


def test_a_delay_of_whole_periods_is_not_a_period_longer() -> None:
    assert actions(0.1 * 3, "chunked")[0] == actions(0.3, "chunked")[0]


def test_the_prefix_of_steps_ends_with_no_step() -> None:
    # A step is over when it is done: past the end of its chunk the robot stays, and so the policy is told.
    steps = replace(ROBOT, action=("x [m]", "dy [m]"), action_mode=("absolute", "delta"))
    env, clock = Long(), Clock(horizon=4)
    env.embodiment = clock.embodiment = steps
    list(
        run_trials(
            lambda: env, lambda _: clock, iter([Trial(50, delay=0.3, execution="rtc")]), parallel=1, n_action_steps=3
        )
    )
    assert clock.prefixes[1] == [[0, 2], [0, 3], [0, 0]]
    assert [tuple(action) for action in env.actions[5:8]] == [(0, 2), (0, 3), (0, 0)]


def test_a_guided_policy_gets_the_leftover_after_the_prefix() -> None:
    class Guided(Clock):
        guides = True
        seen: list[tuple[int, int, int, str]] = []

        def predict_batch(self, observations: Any, *, prefix: RTCPrefix | None = None) -> list[ActionChunk | None]:
            if prefix is not None and prefix.leftover is not None:
                first, last = prefix.leftover[0, [0, -1], 1].astype(int)
                self.seen.append((prefix.committed.shape[1], first, last, prefix.guidance_mode))
            return [self.predict(observation, prefix=None) for observation in observations]

    policy = Guided(horizon=8)
    trial = Trial(50, delay=0.2, execution="guided-vjp")
    list(run_trials(Long, lambda _: policy, iter([trial]), parallel=1, n_action_steps=3))
    # Asked at 5, three steps into the chunk of eight that came at 2: two are committed, and 5 to 7 come after them.
    assert policy.seen[0] == (2, 5, 7, "vjp")
    with pytest.raises(InputError, match="needs a flow head"):
        list(run_trials(Long, lambda _: Clock(), iter([trial]), parallel=1, n_action_steps=3))


def test_a_policy_that_is_asked_alone_is_not_asked_again_for_anothers_fault() -> None:
    class Faulty(Clock):
        def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk:
            if len(self.asked) == 1:
                self.asked.append(-1)
                raise ValueError("the second is too much")
            return super().predict(observation)

    policy, trials = Faulty(), iter([Trial(50), Trial(51)])
    results = list(run_trials(Long, lambda _: policy, trials, parallel=2, n_action_steps=3))
    assert [bool(result.crash) for result in sorted(results, key=lambda r: r.seed)] == [False, True]
    assert policy.asked == [0, -1, 3, 6, 9]


class Drawn(Long):
    """Draws when it is told to, as the table does without images."""

    draws = False

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[int] = []

    def capture(self) -> dict[str, Any]:
        self.drawn.append(len(self.actions))
        return {"front": np.full((4, 4, 3), len(self.actions), np.uint8)}


@pytest.mark.parametrize("every_frame", [False, True])
def test_images_are_drawn_when_the_policy_looks(every_frame: bool) -> None:
    seen: list[int] = []

    class Look(Clock):
        def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk:
            seen.append(int(observation.images["front"][0, 0, 0]))
            return super().predict(observation)

    env = Drawn()
    list(
        run_trials(
            lambda: env, lambda _: Look(), iter([Trial(50)]), parallel=1, n_action_steps=4, every_frame=every_frame
        )
    )
    assert seen == [0, 4, 8]
    assert env.drawn == (list(range(12)) if every_frame else seen)


def test_numbers_of_the_motion() -> None:
    class Cubic(Clock):
        def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk:
            steps = observation.time * 10 + np.arange(6)
            return ActionChunk(np.stack([steps**3 / 6, np.minimum(9 * steps, 99.0)], 1), observation.time, 0.1)

    slot = EpisodeRunner(Long(), Cubic(), None, n_action_steps=6)
    slot.start(Trial(50))
    result = None
    while result is None:
        if slot.wants_chunk:
            slot.take(slot.policy.predict(slot.request().observation))
        result = slot.step()
    # x has a third derivative of 1 per step^3, so 1000 a second^3, and is beyond its limit from step 9; y has none.
    assert result.jerk == pytest.approx(np.sqrt(1000.0**2 / 2))
    assert (result.limit_hits, result.seconds) == (3, 1.2)


@pytest.mark.parametrize(("servo", "safety_filter"), [((4.7, 60.0), True), ((4.7, 60.0), False), (None, True)])
def test_commands_are_kept_within_what_the_environment_says_of_its_servos(servo: Any, safety_filter: bool) -> None:
    class Jump(Clock):
        def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk:
            return ActionChunk(np.array([[50.2, 0.1], [51.5, 0.1], [51.5, 0.1]]), observation.time, 0.1)

    env = Long()
    env.servo = servo  # type: ignore[attr-defined]
    results = list(
        run_trials(
            lambda: env, lambda _: Jump(), iter([Trial(50)]), parallel=1, n_action_steps=3, safety_filter=safety_filter
        )
    )
    x = np.array([50.0, *(action[0] for action in env.actions)])
    if servo is None or not safety_filter:
        assert results[0].clamped == 0 and x[1:4].tolist() == [50.2, 51.5, 51.5]
    else:
        assert results[0].clamped > 0 and np.abs(np.diff(x)).max() == pytest.approx(0.47)
        # What is within the limits is passed on to the bit.
        assert x[1] == 50.2 and x[2] < 51.5 and summarize(results)["clamped"] is None
    assert results[0].limit_hits == 0


def test_trials_of_curves_and_axes() -> None:
    trials = trials_for([1, 2], True, alone=["light"], delays=[0.0, 0.2], executions=["naive", "rtc"])
    cells = [(t.group, t.execution, t.delay) for t in trials[::2]]
    assert cells == [("named", "naive", 0.0), ("named", "naive", 0.2), ("named", "rtc", 0.2), ("swap", "naive", 0.0),
                     ("light", "naive", 0.0)]  # fmt: skip
    assert trials[-1].env == {"axes": ("light",)} and len({t.key for t in trials}) == len(trials)
    # An ensemble is another execution also without a delay.
    both = trials_for([1], False, delays=[0.0, 0.2], executions=["ensemble", "naive", "rtc"])
    assert [(t.execution, t.delay) for t in both] == [
        ("ensemble", 0.0), ("ensemble", 0.2), ("naive", 0.0), ("naive", 0.2), ("rtc", 0.2)
    ]  # fmt: skip
    won = [replace(Result(1, "named", "", False, False, 5, 0), delay=t.delay, execution=t.execution,
                   success=t.execution == "naive") for t in both]  # fmt: skip
    rates = {(r["execution"], r["delay"]): r["success_rate"] for r in summarize(won)["latency"]}
    assert rates == {("ensemble", 0.0): 0, ("ensemble", 0.2): 0, ("naive", 0.0): 1, ("naive", 0.2): 1,
                     ("rtc", 0.0): 1, ("rtc", 0.2): 0}  # fmt: skip
    assert {w.kind for w in won if not w.delay} == {"named", "named, ensemble"}
    # What is named twice, such as a measured delay of 0 beside 0, is no further evidence.
    named = trials_for([1, 2], False, alone=["light"] * 2, delays=[0.0, 0.0, 0.2, 0.2], executions=["naive"] * 2)
    assert len({t.key for t in named}) == len(named) == 6
    blank = Result(0, "", "", True, False, 5, 0)
    results = [replace(blank, seed=t.seed, group=t.group, delay=t.delay, execution=t.execution,
                       success=t.delay == 0 and (t.group != "light" or t.seed == 1)) for t in trials]  # fmt: skip
    summary = summarize(results)
    assert (summary["success_rate"], summary["instruction_swap_success"]) == (1.0, 1.0)
    (row,) = summary["by_axis"]
    assert (row["axis"], row["success_rate"], row["lost"], row["verdict"]) == (
        "light",
        0.5,
        1,
        "no significant difference",
    )
    rates = {(r["execution"], r["delay"]): r["success_rate"] for r in summary["latency"]}
    assert rates == {("naive", 0.0): 1.0, ("naive", 0.2): 0.0, ("rtc", 0.0): 1.0, ("rtc", 0.2): 0.0}

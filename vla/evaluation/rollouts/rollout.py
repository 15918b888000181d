"""Closed-loop episodes in simulation: many environments, one batched policy, in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from traceback import format_exc
from typing import Any

import gymnasium
import numpy as np
from tqdm import tqdm

from vla.common.intervals import wilson
from vla.control.inference import Request, check_execution, predict
from vla.errors import InputError
from vla.evaluation.rollouts.episode_runner import EpisodeRunner
from vla.evaluation.rollouts.trial import Result, Trial, crashed
from vla.policies.policy import BatchPolicy, Policy
from vla.recording.recorder import Recorder

MakeEnv = Callable[..., gymnasium.Env[Any, Any]]
PolicyFor = Callable[[gymnasium.Env[Any, Any]], Policy]


def rollout(
    make_env: MakeEnv,
    policy_for: PolicyFor,
    trials: Sequence[Trial],
    *,
    parallel: int = 16,
    n_action_steps: int = 8,
    recorder: Callable[[], Recorder] | None = None,
) -> list[Result]:
    """Runs every trial to its end and returns the results in the order of `trials`. See `run_trials`."""
    found = run_trials(
        make_env, policy_for, iter(trials), parallel=parallel, n_action_steps=n_action_steps, recorder=recorder
    )
    results = {result.key: result for result in progress(found, len(trials))}
    return [results[trial.key] for trial in trials]


def run_trials(
    make_env: MakeEnv,
    policy_for: PolicyFor,
    trials: Iterator[Trial],
    *,
    parallel: int,
    n_action_steps: int,
    recorder: Callable[[], Recorder] | None = None,
    every_frame: bool = True,
    safety_filter: bool = True,
) -> Iterator[Result]:
    """Runs every trial to its end, up to `parallel` at once; yields the results as they come.

    The environment of a trial is `make_env(**trial.env)`. Up to `n_action_steps` actions of each chunk are carried out before
    the policy is asked again; `every_frame` and `safety_filter` as in `EpisodeRunner`. What raises in a trial is its result, and the
    others go on in environments of their own. Raises InputError when a policy is of another embodiment than its
    environment.
    """
    if parallel < 1 or n_action_steps < 1:
        raise InputError(f"parallel and n_action_steps must be at least 1, not {parallel} and {n_action_steps}")
    seats: list[_EnvWorker] = []
    try:
        for _ in range(parallel):
            place = partial(EpisodeRunner, recorder=recorder and recorder(), n_action_steps=n_action_steps)
            place = partial(place, every_frame=every_frame, safety_filter=safety_filter)
            seats.append(seat := _EnvWorker(make_env, policy_for, place))
            yield from seat.seat_next(trials)
            if seat.trial is None:
                break
        while active := [seat for seat in seats if seat.trial is not None]:
            crashes = _predict([seat.slot for seat in active if seat.slot.wants_chunk])
            for seat in active:
                # On to where it must be asked again, so that all are asked together however they are out of step.
                result = seat.step(crashes.get(id(seat.slot)))
                while result is None and not seat.slot.wants_chunk:
                    result = seat.step(None)
                if result is not None:
                    yield result
                    yield from seat.seat_next(trials)
    finally:
        for seat in seats:
            seat.close()


class _EnvWorker:
    """A place for one trial after another: the environment is made anew where the next one needs another."""

    def __init__(self, make_env: MakeEnv, policy_for: PolicyFor, place: Callable[..., EpisodeRunner]) -> None:
        self._make_env, self._policy_for, self._place = make_env, policy_for, place
        self._env: gymnasium.Env[Any, Any] | None = None
        self.trial: Trial | None = None
        self._of: Any = None

    def seat_next(self, trials: Iterator[Trial]) -> Iterator[Result]:
        """Begins the next trial; yields those that crash at their start."""
        self.trial = None
        for trial in trials:
            if self._env is None or self._of != trial.env:
                self._furnish(trial)
            try:
                self.slot.start(trial)
            except Exception:
                yield self._crash(trial, format_exc())
                continue
            self.trial = trial
            return

    def _furnish(self, trial: Trial) -> None:
        self.close()
        self._env, self._of = self._make_env(**trial.env), trial.env
        try:
            policy = self._policy_for(self._env)
            self.slot = self._place(self._env, policy)
            policy.embodiment.check(self._env.unwrapped.embodiment)  # type: ignore[attr-defined]
            check_execution(policy, trial.execution)
        except BaseException:
            self.close()
            raise

    def step(self, crash: str | None) -> Result | None:
        assert self.trial is not None
        if crash is not None:
            return self._crash(self.trial, crash)
        try:
            return self.slot.step()
        except Exception:
            return self._crash(self.trial, format_exc())

    def _crash(self, trial: Trial, traceback: str) -> Result:
        """An environment that raised is in no known state, and may not close either: the next trial gets another."""
        self.slot.abort()
        with suppress(Exception):
            self.close()
        return crashed(trial, traceback)

    def close(self) -> None:
        env, self._env = self._env, None
        if env is not None:
            env.close()


def _predict(slots: Sequence[EpisodeRunner]) -> dict[int, str]:
    """Asks each policy for a chunk; a batch policy that serves several slots is asked once. The tracebacks by slot."""
    shared: dict[tuple[Any, ...], list[tuple[EpisodeRunner, Request]]] = {}
    crashes: dict[int, str] = {}
    for slot in slots:
        request = slot.request()
        # Others are asked alone: one that remembers must not be asked again for another's fault.
        together = slot.policy if isinstance(slot.policy, BatchPolicy) else slot
        shared.setdefault((id(together), request.shape), []).append((slot, request))
    for group in shared.values():
        _ask(group, crashes)
    return crashes


def _ask(group: Sequence[tuple[EpisodeRunner, Request]], crashes: dict[int, str]) -> None:
    slots, requests = zip(*group, strict=True)
    try:
        chunks = predict(slots[0].policy, requests)
    except Exception:
        if len(group) == 1:
            crashes[id(slots[0])] = format_exc()
        for asked in group if len(group) > 1 else ():  # one at a time, to see whose fault it is
            _ask([asked], crashes)
        return
    for slot, chunk in zip(slots, chunks, strict=True):
        slot.take(chunk)


def progress(results: Iterator[Result], total: int, before: Sequence[Result] = ()) -> Iterator[Result]:
    """The same results, under a bar with the success rate so far and its Wilson interval; `before` counts too."""
    ended = list(before)
    with tqdm(total=total, initial=len(before), desc="evaluate", unit="episode") as bar:
        for result in results:
            ended.append(result)
            bar.update()
            if outcomes := [r.success for r in ended if not r.crash]:
                low, high = wilson(sum(outcomes), len(outcomes))
                crashes = len(ended) - len(outcomes)
                said = f"{np.mean(outcomes):.2f} [{low:.2f}, {high:.2f}]"
                bar.set_postfix(success=said, **({"crashed": crashes} if crashes else {}))
            yield result

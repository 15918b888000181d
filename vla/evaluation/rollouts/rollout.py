"""Closed-loop rollouts in simulation: many environments with batched predictions, in one process."""

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
    """Runs all trials with a progress bar; returns their results in the order of `trials` (`run_trials`)."""
    results = run_trials(
        make_env, policy_for, iter(trials), parallel=parallel, n_action_steps=n_action_steps, recorder=recorder
    )
    by_key = {result.key: result for result in progress(results, len(trials))}
    return [by_key[trial.key] for trial in trials]


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
    """Runs all trials, up to `parallel` at once; yields their results in order of completion.

    An exception in a trial becomes its result; the other trials continue.

    Args:
        make_env: Called with `trial.env` as keyword arguments.
        policy_for: Returns the policy of an environment.
        trials: The trials.
        parallel: The number of environments.
        n_action_steps: The execution horizon.
        recorder: Creates the recorder of an environment.
        every_frame: As in `EpisodeRunner`.
        safety_filter: As in `EpisodeRunner`.

    Raises:
        InputError: a policy is of another embodiment than its environment.
    """
    if parallel < 1 or n_action_steps < 1:
        raise InputError(f"parallel and n_action_steps must be at least 1, not {parallel} and {n_action_steps}")
    workers: list[_EnvWorker] = []
    try:
        for _ in range(parallel):
            make_runner = partial(EpisodeRunner, recorder=recorder and recorder(), n_action_steps=n_action_steps)
            make_runner = partial(make_runner, every_frame=every_frame, safety_filter=safety_filter)
            workers.append(worker := _EnvWorker(make_env, policy_for, make_runner))
            yield from worker.start_next(trials)
            if worker.trial is None:
                break
        while active := [worker for worker in workers if worker.trial is not None]:
            crashes = _predict([worker.runner for worker in active if worker.runner.wants_chunk])
            for worker in active:
                # Steps until the next prediction is due, so that predictions of all environments are batched.
                result = worker.step(crashes.get(id(worker.runner)))
                while result is None and not worker.runner.wants_chunk:
                    result = worker.step(None)
                if result is not None:
                    yield result
                    yield from worker.start_next(trials)
    finally:
        for worker in workers:
            worker.close()


class _EnvWorker:
    """Runs successive trials; the environment is created again if the next trial needs another one."""

    def __init__(self, make_env: MakeEnv, policy_for: PolicyFor, make_runner: Callable[..., EpisodeRunner]) -> None:
        self._make_env, self._policy_for, self._make_runner = make_env, policy_for, make_runner
        self._env: gymnasium.Env[Any, Any] | None = None
        self.trial: Trial | None = None
        self._env_options: Any = None

    def start_next(self, trials: Iterator[Trial]) -> Iterator[Result]:
        """Starts the next trial; yields the results of trials that crash at their start."""
        self.trial = None
        for trial in trials:
            if self._env is None or self._env_options != trial.env:
                self._open_env(trial)
            try:
                self.runner.start(trial)
            except Exception:
                yield self._crash(trial, format_exc())
                continue
            self.trial = trial
            return

    def _open_env(self, trial: Trial) -> None:
        self.close()
        self._env, self._env_options = self._make_env(**trial.env), trial.env
        try:
            policy = self._policy_for(self._env)
            self.runner = self._make_runner(self._env, policy)
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
            return self.runner.step()
        except Exception:
            return self._crash(self.trial, format_exc())

    def _crash(self, trial: Trial, traceback: str) -> Result:
        """The result of a crashed trial. The environment is discarded, since its state is unknown."""
        self.runner.abort()
        with suppress(Exception):
            self.close()
        return crashed(trial, traceback)

    def close(self) -> None:
        env, self._env = self._env, None
        if env is not None:
            env.close()


def _predict(runners: Sequence[EpisodeRunner]) -> dict[int, str]:
    """Predicts action chunks, batched per `BatchPolicy`; returns the tracebacks of failed predictions by runner id."""
    batches: dict[tuple[Any, ...], list[tuple[EpisodeRunner, Request]]] = {}
    crashes: dict[int, str] = {}
    for runner in runners:
        request = runner.request()
        # A policy with state is not batched: after an error in a batch, its prediction could not be repeated.
        owner = runner.policy if isinstance(runner.policy, BatchPolicy) else runner
        batches.setdefault((id(owner), request.shape), []).append((runner, request))
    for batch in batches.values():
        _predict_batch(batch, crashes)
    return crashes


def _predict_batch(batch: Sequence[tuple[EpisodeRunner, Request]], crashes: dict[int, str]) -> None:
    runners, requests = zip(*batch, strict=True)
    try:
        chunks = predict(runners[0].policy, requests)
    except Exception:
        if len(batch) == 1:
            crashes[id(runners[0])] = format_exc()
        for item in batch if len(batch) > 1 else ():  # one at a time, to find the request that fails
            _predict_batch([item], crashes)
        return
    for runner, chunk in zip(runners, chunks, strict=True):
        runner.take(chunk)


def progress(results: Iterator[Result], total: int, before: Sequence[Result] = ()) -> Iterator[Result]:
    """Yields `results` with a progress bar, which has the success rate, also over `before`, and its Wilson interval."""
    ended = list(before)
    with tqdm(total=total, initial=len(before), desc="evaluate", unit="episode") as bar:
        for result in results:
            ended.append(result)
            bar.update()
            if outcomes := [r.success for r in ended if not r.crash]:
                low, high = wilson(sum(outcomes), len(outcomes))
                crashes = len(ended) - len(outcomes)
                rate = f"{np.mean(outcomes):.2f} [{low:.2f}, {high:.2f}]"
                bar.set_postfix(success=rate, **({"crashed": crashes} if crashes else {}))
            yield result

"""Closed-loop episodes in simulation: many environments in step, one batched policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from vla.envs.so101 import to_observation
from vla.errors import InputError
from vla.policies.protocol import BatchPolicy, Policy
from vla.recording.protocol import Recorder
from vla.types import ActionChunk, Observation


@dataclass(frozen=True)
class Trial:
    """One episode to run: the scene's seed and reset options, and which group of the report it belongs to."""

    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""


@dataclass(frozen=True)
class Result:
    """How a trial ended. `length` in steps; `invalid` counts chunks that did not decode and were held."""

    seed: int
    group: str
    instruction: str
    success: bool
    wrong_object: bool
    length: int
    invalid: int


class _Slot:
    """One environment with its policy, its chunk in force and its recorder."""

    def __init__(self, env: gymnasium.Env[Any, Any], policy: Policy, recorder: Recorder | None, execute: int) -> None:
        self.env, self.policy, self.recorder, self.execute = env, policy, recorder, execute
        self.trial: Trial | None = None

    def start(self, trial: Trial) -> None:
        self.trial = trial
        values, info = self.env.reset(seed=trial.seed, options=dict(trial.options))
        self.instruction: str = info["instruction"]
        self.length = self.invalid = self.used = 0
        self.chunk: ActionChunk | None = None
        self.observe(values)
        self.hold = self.observation.state
        self.policy.reset()
        if self.recorder is not None:
            self.recorder.start(self.instruction, seed=trial.seed, group=trial.group)

    def observe(self, values: dict[str, Any]) -> None:
        self.observation = to_observation(values, self.length / self.policy.embodiment.control_hz)

    @property
    def wants_chunk(self) -> bool:
        return self.chunk is None or self.used >= min(self.execute, len(self.chunk.actions))

    def take(self, chunk: ActionChunk | None) -> None:
        self.chunk, self.used = chunk, 0
        self.invalid += chunk is None

    def step(self) -> Result | None:
        """Acts once; the result where that ended the episode. Without a valid chunk the arm holds still."""
        assert self.trial is not None
        rest = self.hold[None] if self.chunk is None else self.chunk.actions[self.used :]
        action: Float[np.ndarray, "a"] = rest[0]
        if self.recorder is not None:
            said = {} if self.chunk is None else {"chunk": rest, "points": self.chunk.points}
            self.recorder.step(self.observation, action, **said)
        values, _, terminated, truncated, info = self.env.step(action)
        self.hold, self.used, self.length = action, self.used + 1, self.length + 1
        self.observe(values)
        if not (terminated or truncated):
            return None
        if self.recorder is not None:
            self.recorder.finish(bool(info["success"]))
        result = Result(
            seed=self.trial.seed,
            group=self.trial.group,
            instruction=self.instruction,
            success=bool(info["success"]),
            wrong_object=bool(info["wrong_object"]),
            length=self.length,
            invalid=self.invalid,
        )
        self.trial = None
        return result


def rollout(
    make_env: Callable[[], gymnasium.Env[Any, Any]],
    policy_for: Callable[[gymnasium.Env[Any, Any]], Policy],
    trials: Sequence[Trial],
    *,
    parallel: int = 16,
    execute: int = 8,
    recorder: Callable[[], Recorder] | None = None,
    done: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Runs every trial to its end and returns the results in the order of `trials`.

    Up to `execute` actions of each chunk are carried out before the policy is asked again. Raises InputError
    when a policy is of another embodiment than its environment.
    """
    if parallel < 1 or execute < 1:
        raise InputError(f"parallel and execute must be at least 1, not {parallel} and {execute}")
    waiting: Iterator[tuple[int, Trial]] = iter(enumerate(trials))
    slots: list[tuple[_Slot, int]] = []
    results: dict[int, Result] = {}
    envs = [make_env() for _ in range(min(parallel, len(trials)))]
    try:
        for env in envs:
            slot = _Slot(env, policy_for(env), None if recorder is None else recorder(), execute)
            slot.policy.embodiment.check(env.unwrapped.embodiment)  # type: ignore[attr-defined]
            index, trial = next(waiting)
            slot.start(trial)
            slots.append((slot, index))
        with tqdm(total=len(trials), desc="evaluate", unit="episode") as bar:
            while slots:
                _predict([slot for slot, _ in slots if slot.wants_chunk])
                active = []
                for slot, index in slots:
                    result = slot.step()
                    if result is not None:
                        results[index] = result
                        if done is not None:
                            done(result)
                        bar.update()
                        bar.set_postfix(success=f"{np.mean([r.success for r in results.values()]):.2f}")
                        following = next(waiting, None)
                        if following is None:
                            continue
                        index, trial = following
                        slot.start(trial)
                    active.append((slot, index))
                slots = active
    finally:
        for env in envs:
            env.close()
    return [results[i] for i in range(len(trials))]


def _predict(slots: Sequence[_Slot]) -> None:
    """Asks each policy for a chunk; a batch policy that serves several slots is asked once."""
    shared: dict[int, list[_Slot]] = {}
    for slot in slots:
        shared.setdefault(id(slot.policy), []).append(slot)
    for group in shared.values():
        policy = group[0].policy
        observations: list[Observation] = [slot.observation for slot in group]
        if isinstance(policy, BatchPolicy):
            chunks = policy.predict_batch(observations)
        else:
            chunks = [policy.predict(observation) for observation in observations]
        for slot, chunk in zip(group, chunks, strict=True):
            slot.take(chunk)

"""Evaluates two policies on the same seeds, and says whether one is better.

    python examples/evaluate_and_compare.py --episodes 40
    python examples/evaluate_and_compare.py --a outputs/train --b outputs/other --episodes 100

A policy is a name that `vla.load_policy` takes, or "noisy": the scripted expert with noise on its actions (below).
`vla eval` and `vla compare` do the same from the command line, with several processes and a report.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np

import vla
from vla.evaluation.rollouts.rollout import rollout
from vla.evaluation.rollouts.summary import paired, rate
from vla.evaluation.rollouts.trial import Result, trials_for
from vla.policies.load import load_policy
from vla.types import ActionChunk, Observation, RTCPrefix


class NoisyExpert:
    """The scripted expert with noise [rad] on each action, by the protocol `vla.policies.policy.Policy`."""

    def __init__(self, env, noise: float = 0.06) -> None:
        self._expert, self._noise = vla.load_policy("expert", env), noise
        self.embodiment = self._expert.embodiment
        self.reset()

    def reset(self) -> None:
        """Called at the start of each episode."""
        self._expert.reset()
        self._rng = np.random.default_rng(0)

    def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk:
        chunk = self._expert.predict(observation)
        noisy = chunk.actions + self._noise * self._rng.normal(size=chunk.actions.shape)
        return ActionChunk(noisy, chunk.start, chunk.dt)


def evaluate(name: str, seeds: range) -> list[Result]:
    """One result a seed: the same seed is the same scene and instruction for every policy."""
    # New instructions, and images only at inference steps.
    make_env = partial(vla.make_env, "pick", image_size=96, phrasing="heldout", images=False)
    policy_for = NoisyExpert if name == "noisy" else load_policy(name)  # makes the policy of an environment
    return rollout(make_env, policy_for, trials_for(seeds, swap=False), parallel=4, n_action_steps=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--a", default="noisy")
    parser.add_argument("--b", default="expert")
    parser.add_argument("--episodes", type=int, default=10)
    options = parser.parse_args()

    seeds = range(1000, 1000 + options.episodes)
    results = {name: evaluate(name, seeds) for name in (options.a, options.b)}
    for name, found in results.items():
        summary = rate(found)
        low, high = summary["success_ci95"]
        print(f"{name}: success {summary['success_rate']:.2f}, 95 % interval {low:.2f} to {high:.2f}")

    # Pairs of the same seed: McNemar's exact test, and an interval of the difference.
    row = paired(results[options.a], results[options.b])
    low, high = row["difference_ci95"]
    print(f"{options.b} minus {options.a}: {row['difference']:+.2f} [{low:+.2f}, {high:+.2f}], p = {row['p']:.2g}")
    print(f"{options.b} alone succeeds in {row['won']} of {row['pairs']} pairs, {options.a} alone in {row['lost']}")
    print(f"{options.b} against {options.a}: {row['verdict']}")


if __name__ == "__main__":
    main()

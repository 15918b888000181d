"""Trains a policy on demonstrations from Python, loads it, and asks it for an action chunk.

    python examples/train_a_policy.py --episodes 400 --steps 900

`vla train data=… out=…` does the same from the command line; `vla train --help` explains each option.
The defaults here show the steps in a minute. They are far too few for a policy that succeeds.
"""

from __future__ import annotations

from pathlib import Path

from load_and_look_at_a_store import parser_of, record

import vla
from vla.training.run import train
from vla.training.run_options import RunOptions
from vla.types import ActionChunk


def train_policy(store: Path, out: Path, steps: int, batch_size: int = 16, head: str = "parallel") -> Path:
    """Trains on the store and returns the folder of the run; a run that was cut off continues."""
    outcome = train(
        RunOptions(
            data=str(store),
            vqa={},  # stores of visual questions, by name: {"vqa": "outputs/scenes.zarr"}
            mixture={"robot": 1.0},  # how often each source is drawn
            out=str(out),
            backbone="nano",  # the small pretrained backbone of this package; `vla models` lists others
            head=head,  # how actions are represented: parallel, bins, fast, text, l1, flow, or a plug-in
            horizon=6,  # steps of an action chunk
            turns=1,
            heldout_questions=0,
            plan={"steps": steps, "batch_size": batch_size, "evaluate_every": steps, "warmup": steps // 4},
        )
    )
    for evaluation in outcome.evaluations:
        print(f"step {evaluation['step']}: held-out action error {evaluation.get('action_error', float('nan')):.3f}")
    return out


def predict_once(run: Path) -> ActionChunk:
    """The policy's action chunk at the start of a new scene."""
    env = vla.make_env("pick")
    observation, _ = env.reset(seed=1000)
    chunk = vla.load_policy(run).predict(observation)
    env.close()
    return chunk


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--episodes", type=int, default=8, help="how many demonstrations to record")
    parser.add_argument("--steps", type=int, default=20, help="training steps")
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()
    store = record(options.out / "demonstrations.zarr", options.episodes)
    run = train_policy(store, options.out / "train", options.steps, options.batch_size)

    # The folder of a run stands for its best checkpoint.
    policy = vla.load_policy(run)
    env = vla.make_env("pick", phrasing="heldout")
    observation, info = env.reset(seed=1000)
    chunk = policy.predict(observation)
    print(f"{info['instruction']!r}: {len(chunk.actions)} actions, {chunk.dt:g} s apart")
    for action in chunk.actions:
        observation, reward, terminated, truncated, info = env.step(action)
    env.close()
    print(f"evaluate it: vla eval policy={run} seeds=1000:1060")


if __name__ == "__main__":
    main()

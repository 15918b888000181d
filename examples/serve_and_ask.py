"""Starts a policy server on a free port, and drives an environment with the remote policy.

    python examples/serve_and_ask.py --policy outputs/train

Without `--policy` it trains a tiny one first. On another machine, start the server with `host=0.0.0.0` and a key
(`vla serve --help`), and give the robot the address: `vla deploy policy=ws://HOST:8000`. The protocol is openpi's.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from load_and_look_at_a_store import parser_of, record
from train_a_policy import train_policy

import vla


@contextmanager
def serving(policy: Path) -> Iterator[str]:
    """Runs `vla serve` in a process of its own; yields its address, and stops it at the end."""
    command = [sys.executable, "-m", "vla", "serve", f"policy={policy}", "port=0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        # It prints "serving POLICY for ROBOT at ws://HOST:PORT" when it listens.
        address = next((line.split()[-1] for line in server.stdout if line.startswith("serving ")), None)
        if address is None:
            raise RuntimeError(f"the server ended with exit code {server.wait()}")
        yield address
    finally:
        server.terminate()  # it answers the requests that wait, then ends
        server.wait(timeout=60)
        server.stdout.close()


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--policy", type=Path, help="the folder of a run or a checkpoint; default: train one")
    parser.add_argument("--chunks", type=int, default=3, help="how often to ask the server")
    options = parser.parse_args()
    if options.policy is None:
        store = record(options.out / "demonstrations.zarr", episodes=8)
        options.policy = train_policy(store, options.out / "train", steps=20)

    with serving(options.policy) as address:
        print(f"the server listens at {address}")
        env = vla.make_env("pick", phrasing="heldout")
        policy = vla.load_policy(address, env)
        observation, info = env.reset(seed=1000)
        policy.reset()
        for _ in range(options.chunks):
            chunk = policy.predict(observation)
            if chunk is None:
                print("no answer in time: a robot would hold still")
                break
            print(f"{info['instruction']!r}: {len(chunk.actions)} actions, the first {chunk.actions[0].round(2)}")
            for action in chunk.actions[:3]:
                observation, _, terminated, truncated, info = env.step(action)
        env.close()


if __name__ == "__main__":
    main()

"""Opens a store of episodes, prints what it holds, and writes a picture of one episode.

    python examples/load_and_look_at_a_store.py --store outputs/pick.zarr

Without `--store` it first records demonstrations, as `vla record task=pick episodes=2` does.
An `Episode` holds numpy arrays with one row a step: images by camera, state, action and time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import vla
from vla.commands.record import demonstrate
from vla.datasets.episodes import EpisodeStore


def record(path: Path, episodes: int) -> Path:
    """Records demonstrations of the scripted expert into a new store; an existing one is left as it is."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    env = vla.make_env("pick", image_size=96)
    with EpisodeStore.create(path, env.unwrapped.embodiment) as store:
        for seed in range(episodes):
            # Noise on the executed action shows how to return to the path; the clean action is recorded.
            store.append(demonstrate(env, "pick", seed, noise=0.03))
    env.close()
    return path


def parser_of(description: str) -> argparse.ArgumentParser:
    """The options of an example; this one is common to those that write files."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/examples"))
    return parser


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--store", type=Path, help="a store; default: record one")
    parser.add_argument("--episodes", type=int, default=2, help="how many episodes to record")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.store or record(options.out / "pick.zarr", options.episodes)

    with vla.open_store(path) as store:
        robot = store.embodiment
        print(f"{len(store)} episodes, {store.total_frames} steps of {robot.name} at {robot.control_hz:g} Hz")
        print(f"cameras: {', '.join(robot.cameras)}; state and action: {', '.join(robot.action)}")

        episode = store[0]
        print(f"episode 0: {episode.instruction!r}, {len(episode)} steps, success {episode.success}")
        print(f"state {episode.state.shape} from {episode.state.min(0).round(2)} to {episode.state.max(0).round(2)}")

        # Ranges over all episodes are computed without decoding an image.
        statistics = store.statistics()["action"]
        for name, low, high in zip(robot.action, statistics.min, statistics.max, strict=True):
            print(f"  {name:22}{low:8.2f} to {high:.2f}")

        # One row of pictures for each camera, at five moments of the episode.
        steps = np.linspace(0, len(episode) - 1, 5).astype(int)
        rows = [np.hstack(episode.images[camera][steps]) for camera in robot.cameras]
        picture = options.out / "episode.png"
        Image.fromarray(np.vstack(rows)).save(picture)
    print(f"open {picture}, or watch the episodes: vla view {path}")


if __name__ == "__main__":
    main()

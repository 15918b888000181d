"""Adds a task to the simulated table, and measures how often its scripted expert succeeds.

    python examples/add_a_task.py --episodes 20

Recipe: write a class derived from `vla.envs.tasks.task.Task`. Its parts:

- `templates` and `vocabulary`: the instructions, for training and held out, and the words that fill their fields.
- `layout` draws a scene from a random generator. It does not depend on the instruction, so a scene has several.
- `words` names what instruction (target, goal) refers to; `done` judges the state of the simulation.
- `plan` gives the expert's command in the present state, without memory; `vla.envs.primitives` has lifting, carrying,
  pressing and pushing.

Positions are in metres in the frame of the robot's base: x forward, y left. Tune the expert until it succeeds in at
least 95 % of the seeds, since failures are not recorded. A package adds a task to every command by its pyproject.toml:

    [project.entry-points."vla.tasks"]
    centre = "my_package.centre:Centre"

after which `vla record task=centre`, `vla train task=centre` and `vla eval task=centre` work.
"""

from __future__ import annotations

import argparse

import numpy as np

import vla
from vla.envs.objects import COLORS, Furniture, Layout
from vla.envs.primitives import Command, Move, carry_out, settled
from vla.envs.scene import TableScene
from vla.envs.tasks.task import Task, distinct_objects

MIDDLE = (0.235, 0.0)
"""[m]"""


class Centre(Task):
    """The named cube stands in the middle of the table, and the hand has let it go."""

    name = "centre"
    furniture = Furniture(shapes=("cube",), goals=0)
    vocabulary = {"object": tuple(f"{color} cube" for color in COLORS)}
    templates = {
        "train": (
            "put the {object} in the middle",
            "move the {object} to the middle of the table",
            "place the {object} at the centre",
        ),
        "heldout": ("the {object} belongs in the middle", "please bring the {object} to the centre"),
    }

    def layout(self, rng: np.random.Generator) -> Layout:
        """One cube on either side; the middle is free."""
        points = [(float(rng.uniform(0.18, 0.27)), side * float(rng.uniform(0.08, 0.12))) for side in (1, -1)]
        return Layout(distinct_objects(rng, points, ("cube",)))

    def words(self, scene: TableScene, target: int, goal: int) -> dict[str, tuple[str, ...]]:
        return {"object": (scene.objects[target].name,)}

    def done(self, scene: TableScene, target: int, goal: int) -> bool:
        return settled(scene, self._move(scene, target))

    def plan(self, scene: TableScene, target: int, goal: int) -> Command:
        return carry_out(scene, [self._move(scene, target)])

    def points(self, scene: TableScene, target: int, goal: int) -> list[np.ndarray]:
        """Where the cube is and where it goes: the policy learns to point at both before it acts."""
        return [scene.object_position(target), self._move(scene, target).position]

    def _move(self, scene: TableScene, target: int) -> Move:
        return Move(target, np.array([*MIDDLE, scene.objects[target].half_extents[2]]))


vla.register_task(Centre)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=5)
    options = parser.parse_args()

    env = vla.make_env("centre", images=False)  # the expert reads the simulation, not the images
    expert = vla.load_policy("expert", env)
    successes = 0
    for seed in range(options.episodes):
        observation, info = env.reset(seed=seed)
        expert.reset()
        steps, ended = 0, False
        while not ended:
            chunk = expert.predict(observation)
            observation, _, terminated, truncated, info = env.step(chunk.actions[0])
            steps, ended = steps + 1, terminated or truncated
        successes += info["success"]
        print(f"seed {seed}: {info['instruction']!r}, {'success' if info['success'] else 'failure'} in {steps} steps")
    env.close()
    print(f"the expert succeeds in {successes} of {options.episodes} episodes")


if __name__ == "__main__":
    main()

"""The plug-in as an installer leaves it, LeRobot's commands, and a small LeRobotDataset."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
TOY_ROBOT = '''
import json, os
from dataclasses import dataclass
import numpy as np
from lerobot.robots import Robot, RobotConfig

@RobotConfig.register_subclass("toy")
@dataclass
class ToyConfig(RobotConfig):
    log: str = ""

class Toy(Robot):
    """Goes at once to where it is commanded."""
    config_class, name = ToyConfig, "toy"
    is_connected = is_calibrated = True
    observation_features = {"lift.pos": float, "turn.pos": float, "front": (8, 10, 3), "wrist": (8, 10, 3)}
    action_features = {"lift.pos": float, "turn.pos": float, "grip.pos": float}

    def __init__(self, config):
        super().__init__(config)
        self.config, self.at, self.sent = config, {"lift.pos": 0.1, "turn.pos": -0.2}, []

    def connect(self, calibrate=True): ...
    def calibrate(self): ...
    def configure(self): ...

    def get_observation(self):
        return {**self.at, **{name: np.full((8, 10, 3), 7, np.uint8) for name in ("front", "wrist")}}

    def send_action(self, action):
        self.sent.append(action)
        self.at = {name: action[name] for name in self.at}
        return action

    def disconnect(self):
        with open(self.config.log, "w") as file:
            json.dump(self.sent, file)
'''


def install(folder: Path) -> Path:
    """Unpacks the plug-in's wheel and a robot without hardware below `folder`; returns the path to import from."""
    command = [sys.executable, "-c", f"import setuptools.build_meta as b; b.build_wheel({str(folder)!r})"]
    source = folder / "source"
    source.mkdir()
    for file in (ROOT / "lerobot_policy_vla").glob("*.*"):
        (source / file.name).write_text(file.read_text())
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    (target / "lerobot_robot_toy.py").write_text(TOY_ROBOT)
    about = target / "lerobot_robot_toy-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lerobot_robot_toy\nVersion: 1\n")
    return target


def run(site: Path, name: str, *arguments: str, before: str = "pass") -> subprocess.CompletedProcess[str]:
    """One of LeRobot's commands, or vla, as its console script starts it, after a statement of a test."""
    (script,) = entry_points(group="console_scripts", name=name)
    assert isinstance(script, EntryPoint)
    code = f"import sys; {before}; from {script.module} import {script.attr} as main; sys.exit(main())"
    path = os.pathsep.join(filter(None, [str(site), str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        cwd=site,
        capture_output=True,
        text=True,
    )


def command(site: Path, name: str, *arguments: str, before: str = "pass") -> str:
    """The output of a command that succeeds."""
    done = run(site, name, *arguments, before=before)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def dataset(
    root: Path,
    names: Sequence[str] = ("lift.pos", "turn.pos"),
    episodes: int = 2,
    steps: int = 6,
    robot: str = "arm",
    cameras: Sequence[str] = ("front",),
) -> Path:
    """A LeRobotDataset that LeRobot itself writes: the joints move at 10 Hz, each action is the next state."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    width, rng = len(names), np.random.default_rng(0)
    features: dict[str, Any] = {
        key: {"dtype": "float32", "shape": (width,), "names": list(names)} for key in ("observation.state", "action")
    }
    axes = ["height", "width", "channels"]
    for camera in cameras:
        features[f"observation.images.{camera}"] = {"dtype": "image", "shape": (16, 16, 3), "names": axes}
    written = LeRobotDataset.create("tests/arm", 10, features=features, root=root, robot_type=robot, use_videos=False)
    for episode in range(episodes):
        states = rng.uniform(0.02, 0.06, (steps + 1, width)).cumsum(axis=0).astype(np.float32)
        for now, later in zip(states, states[1:], strict=False):
            images = {f"observation.images.{c}": rng.integers(0, 256, (16, 16, 3), np.uint8) for c in cameras}
            task = ("lift the ring", "what color is it")[episode % 2]
            written.add_frame({"observation.state": now, "action": later, "task": task, **images})
        written.save_episode()
    written.finalize()
    return root

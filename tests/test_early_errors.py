"""A mistake in the options of a command is reported before anything slow is imported: torch, MuJoCo, LeRobot, zarr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SLOW = ("torch", "mujoco", "lerobot", "zarr", "gymnasium", "pyarrow", "scipy", "rerun", "matplotlib", "transformers")
TRAIN = "train data=demos.zarr mixture.vqa=0"
ON_ARM = "record robot=sim out=by-hand.zarr"
MISTAKES = [
    (f"{TRAIN} horizon=soon", "horizon is a number of steps"),
    (f"{TRAIN} delay=soon", "delay is a time in seconds"),
    (f"{TRAIN} predict=relativ", "actions are predicted relative or unchanged"),
    (f"{TRAIN} normalization=minmax", "there is no normalization 'minmax'"),
    (f"{TRAIN} statistics=fresh", "statistics are keep, new or merge"),
    (f"{TRAIN} state_encoding=words", "state_encoding is numbers or text"),
    (f"{TRAIN} images=squeeze", "images is one of native"),
    (f"{TRAIN} log=paper", "there is no log paper"),
    (f"{TRAIN} instruction=none", "instruction=none: choose of"),
    (f"{TRAIN} head=fast head.tokenizer=none", "head.tokenizer=none: there is no such folder"),
    (f"{TRAIN} 'regression_gates={{pope: {{n: 3}}}}'", "margin is required"),
    (f"{TRAIN} turns=few", "turns takes a whole number"),
    (f"{TRAIN} temperature=hot", "temperature=hot: takes a number or null"),
    ("train-tokenizer data=demos.zarr scale=0", "scale must be greater than 0"),
    ("train-tokenizer data=demos.zarr horizon=0", "horizon must be at least 1"),
    ("train-tokenizer data=demos.zarr out=.", "exists already"),
    ("demo episodes=0", "must be positive"),
    ("demo horizon=0", "horizon must be at least 1"),
    ("demo backbone=none/of/these", "no backbone"),
    ("convert none out.zarr", "cannot read none: nothing is there"),
    ("convert none out.zarr format=hdf5", "cannot read none: nothing is there"),
    ("convert demos.zarr out.zarr format=hdf", "there is no format 'hdf' (did you mean 'hdf5'?)"),
    ("convert demos.zarr out.zarr codec=png", "there is no codec 'png'"),
    ("convert demos.zarr out.zarr episodes=some", "episodes must be FIRST:END"),
    ("convert demos.zarr out.zarr use_videos=true", "use_videos is no option for a zarr store"),
    ("convert demos.zarr out.zarr to=zarr", "to=zarr: choose auto"),
    ("data delete demos.zarr", "vla data delete needs episodes="),
    ("data filter demos.zarr out=b.zarr parts={a:1}", "it belongs to vla data split"),
    ("data info none.zarr", "no episode store at none.zarr"),
    ("record seed=-1", "the seed must be 0 or more"),
    ("record noise=2", "noise in [0, 1)"),
    ("record codec=png", "there is no codec 'png'"),
    ("record task=pikc", "unknown task 'pikc' (did you mean 'pick'?)"),
    ("record robot=sim", "out=outputs/NAME.zarr"),
    (f"{ON_ARM} teleop=mouse", "unknown teleop 'mouse'"),
    (f"{ON_ARM} teleop=script", "a script needs script=FILE"),
    (f"{ON_ARM} teleop=script script=bad.txt", "unknown command 'jump'"),
    (f"{ON_ARM} teleop=script script=good.txt pause=3", "a script has no pause"),
    (f"{ON_ARM} teleop=script script=good.txt pause=long", "pause=long: takes a number or null"),
    (f"{ON_ARM} teleop=script script=good.txt stop_file=good.txt", "stop_file=good.txt exists already"),
    (f"{ON_ARM} teleop=gamepad joystick=none", "no gamepad at none"),
    (f"{ON_ARM} teleop=leader", "needs leader_port="),
    (f"{ON_ARM} teleop=leader leader_port=none", "leader_port=none does not exist"),
    (f"{ON_ARM} teleop=keyboard robot.task=bimanual-lift", "does not have one SO-101"),
    (f"{ON_ARM} teleop=keyboard", "needs a terminal for its keys"),
    ("record robot=so101 robot.port=/dev/null teleop=script script=good.txt out=a.zarr", "set the instruction"),
    ("play task=bimanual-lift", "does not have one SO-101"),
    ("play task=metaworld/reach-v3", "does not have one SO-101"),
    ("play device=mouse", "unknown device 'mouse'"),
    ("play device=script", "a script needs script=FILE"),
    ("play device=gamepad joystick=none", "no gamepad at none"),
    ("play seed=-1", "the seed must be 0 or more"),
    ("play", "there is no screen for the viewer"),
    ("deploy policy=hold robot=so101 robot.port=/dev/null", "set the instruction"),
    ("deploy policy=hold robot=so101 robot.port=none instruction=go", "robot.port=none does not exist"),
    ("deploy policy=hold seconds=0", "seconds and lost must be above 0"),
    ("deploy policy=hold codec=png", "there is no codec 'png'"),
    ("deploy policy=hold codec=webp record=false", "codec= applies to the episode"),
    ("deploy policy=hold loop.hz=7", "hz must be a multiple"),
    ("deploy policy=hold loop.execution=fast", "unknown execution 'fast'"),
    ("deploy policy=hold loop.end=home dry_run=true", "loop.end=home moves the arm"),
    ("deploy policy=hold stop_gamepad=none", "no gamepad at none"),
    ("deploy policy=expert", "deploy a checkpoint"),
    ("deploy policy=hub:none", "neither a folder nor a model of the hub"),
    ("eval render=some", "render is one of"),
    ("eval execution=[fast]", "execution is a list of"),
    ("eval delay=[soon]", "delay is a list of seconds"),
    ("eval workers=0", "must be at least 1"),
    ("eval stop=2.0", "stop is a rate between 0 and 1"),
    ("eval axes=[lite]", "unknown axis lite"),
    ("eval merge=[none]", "none holds no evaluation"),
    ("eval task=metaworld/reach", "metaworld has no task 'reach'"),
    ("eval task=none.yaml", "there is no file none.yaml"),
    ("serve policy=hold", "vla serve takes a checkpoint folder"),
    ("serve policy=none port=99999", "a port is below 65536"),
    ("view task=pick seed=-1", "the seed must be 0 or more"),
    ("view none.zarr", "nothing is there"),
    ("probe policy=nano probes=[pope]", "unknown probe 'pope'"),
    ("so101-sim task=bimanual-lift", "does not have one SO-101"),
    ("so101-sim seed=-1", "the seed must be 0 or more"),
    ("so101-sim image_size=0", "fps and image_size are above 0"),
    ("so101-sim camera_port=99999", "a port is below 65536"),
    ("score pope predictions=none references=none", "none: a folder or a file"),
    ("compare none others", "none holds no eval.json"),
]
CODE = f"""
import json, shlex, sys
from vla.commands.cli import main
for line in json.loads(sys.argv[1]):
    print(f"$ {{line}}", file=sys.stderr)
    code = main(shlex.split(line))
    print(json.dumps([line, code, sorted(set({SLOW}) & set(sys.modules))]), flush=True)
"""


def test_mistakes_are_reported_before_anything_slow_is_imported(tmp_path: Path) -> None:
    (tmp_path / "demos.zarr").mkdir()
    (tmp_path / "good.txt").write_text("x+ save")
    (tmp_path / "bad.txt").write_text("x+ jump")
    command = [sys.executable, "-c", CODE, json.dumps([line for line, _ in MISTAKES])]
    done = subprocess.run(
        command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=_without_screen()
    )
    assert "Traceback" not in done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found == [[line, 2, []] for line, _ in MISTAKES]
    messages = [part.splitlines()[-1] for part in done.stderr.split("$ ")[1:]]
    assert [message for message, (_, named) in zip(messages, MISTAKES, strict=True) if named not in message] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.txt", "demos.zarr", "good.txt"]


def _without_screen() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}

"""`vla record robot=…`: an operator's demonstrations, on the simulated arm and on the emulated bus."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla.commands import cli, options
from vla.datasets.episodes import EpisodeStore
from vla.embodiment import Embodiment
from vla.envs.make import make_env
from vla.envs.scene import TableScene
from vla.envs.so101 import SO101Env
from vla.errors import InputError
from vla.recording.zarr_recorder import ZarrRecorder
from vla.robots.feetech_emulator.arm import ServoArm
from vla.robots.feetech_emulator.port import ServoPort
from vla.robots.lerobot_adapter.robot import LeRobotRobot
from vla.robots.robot import RobotFault
from vla.robots.sim import SimRobot
from vla.robots.teleoperators.cartesian_jog import fingertip_solver
from vla.robots.teleoperators.leader import Leader
from vla.robots.teleoperators.operator import FAULTS, Operator
from vla.robots.teleoperators.teleoperator import WORDS, Event, Jog
from vla.robots.teleoperators.terminal import Terminal
from vla.types import Observation

HOME = np.array([0.0, -1.2, 1.0, 0.8, 0.0, 0.5])
AWAY = np.array([0.5, -0.7, 0.6, 0.4, 0.4, 1.2])


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def record(*given: str, robot: str = "sim") -> int:
    return cli.main(["record", f"robot={robot}", "out=by-hand.zarr", "pause=0", *given])


def scripted(text: str, *given: str) -> EpisodeStore:
    Path("script.txt").write_text(text)
    assert record("teleop=script", "script=script.txt", "robot.seed=3", *given) == 0
    return EpisodeStore.open("by-hand.zarr")


def test_the_script_keeps_discards_and_ends_and_the_same_command_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    store = scripted("x+ x+ discard z- close wait save", "episodes=2")
    (episode,) = list(store)
    assert episode.success and episode.info["scene"] == 0 and 1 <= len(episode) <= 6
    assert (np.diff(episode.time) > 0.05).all() and not store.unfinished_frames
    assert np.isfinite(episode.action).all() and np.ptp(episode.action[:, 5]) > 0
    said = capsys.readouterr().out
    assert "ctrl-C" in said and "enter" not in said
    assert "discarded" in said and "ended: quit" in said and "1 new episodes, 1 in all" in said
    store = scripted("y+ y+ save y+ save", "episodes=2")
    assert [r.info["scene"] for r in store.records] == [0, 1]


def test_idle_time_before_the_first_movement_is_not_recorded_and_counts_are_of_the_instruction() -> None:
    waits = "wait " * 9
    store = scripted(f"save {waits}x+ x+ save z+ save", "pause=null", "instruction='wave, slowly'", "episodes=1")
    assert [(r.instruction, r.length <= 4) for r in store.records] == [("wave, slowly", True)]
    store = scripted("z+ save", "instruction=nod", "episodes=1")
    assert [r.instruction for r in store.records] == ["wave, slowly", "nod"]


@pytest.mark.parametrize("script", ["x+ x+", "save wait save", "close x+ discard wait save"])
def test_a_script_that_keeps_nothing_is_no_success(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("script.txt").write_text(script)
    assert record("teleop=script", "script=script.txt", "pause=null") == 2
    said = capsys.readouterr()
    assert "the script saved no episode: save stores" in said.err
    assert said.out.count("not saved: the arm has not moved") == script.count("save")
    assert not Path("by-hand.zarr").exists()


def test_a_jog_that_does_not_move_the_arm_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    scripted("open " * 9 + "save", "episodes=1")
    assert capsys.readouterr().out.count("  the gripper is open\n") == 1


def test_an_episode_lasts_so_long_at_most_and_is_kept() -> None:
    (episode,) = list(scripted("x+ " + "wait " * 50, "seconds=0.6", "episodes=1"))
    assert not episode.success and episode.time[-1] - episode.time[0] < 0.6


@pytest.mark.parametrize("keep", [False, True])
def test_what_a_signal_cuts_off_is_kept_or_not_as_told(
    keep: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held: list[np.ndarray] = []
    monkeypatch.setattr(SimRobot, "hold", lambda self, last: held.append(last))
    device(monkeypatch, lambda count: os.kill(os.getpid(), signal.SIGTERM) if count == 5 else None)
    assert record("teleop=script", f"keep_unfinished={keep}") == 3
    store = EpisodeStore.open("by-hand.zarr")
    assert len(store) == keep and not store.unfinished_frames and "ended: terminated" in capsys.readouterr().out
    assert len(held) == 1 and np.isfinite(held[0]).all()


def test_a_file_stops_the_arm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    device(monkeypatch, lambda count: Path("stop").touch() if count == 5 else None)
    assert record("teleop=script", "stop_file=stop") == 3
    assert "the session ended: emergency stop: stop" in capsys.readouterr().err


def device(monkeypatch: pytest.MonkeyPatch, at: Callable[[int], object]) -> None:
    """In place of a device: moves forward, and does `at` of how often it was read."""

    class Device:
        count = 0

        def read(self) -> Jog:
            self.count += 1
            at(self.count)
            return WORDS["x+"]

    for module in ("record_robot", "operation_checks"):
        monkeypatch.setattr(f"vla.commands.{module}.open_device", lambda *_: Device())


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["teleop=script"], "script=FILE"),
        (["teleop=mouse"], "leader, keyboard, gamepad, script"),
        (["teleop=gamepad", "joystick=none"], "no gamepad at none"),
        (["teleop=keyboard"], "terminal"),
        (["teleop=leader"], "leader_port"),
        (["teleop=leader", "leader_port=nowhere"], "leader_port=nowhere does not exist"),
        (["teleop=leader", "leader_port=/dev/null", "leader_calibration_dir=.", "pause=1"], "calibrate"),
        (["teleop=script", "episodes=0"], "above 0"),
        (["teleop=script", "pause=3"], "a script has no pause"),
        (["teleop=script", "out=outputs/pick.zarr"], "out=outputs/NAME.zarr"),
        (["teleop=script", "robot.task=bimanual-lift"], "one SO-101"),
        (["robot=so101", "robot.port=/dev/null", "teleop=script"], "instruction="),
    ],
)
def test_mistakes_are_named_before_anything_is_written(
    given: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert record(*given) == 2
    assert named in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []


def test_a_store_of_another_arm_is_refused_before_anything_moves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Embodiment("other", ("top",), ("x",), ("x",), (0.0,), (1.0,), 10.0)
    EpisodeStore.create("by-hand.zarr", other).close()
    monkeypatch.setattr(SimRobot, "__enter__", lambda self: pytest.fail("connected"))
    Path("script.txt").write_text("x+ save")
    assert record("teleop=script", "script=script.txt") == 2
    assert "cameras" in capsys.readouterr().err


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[dict[str, ServoPort]]:
    """Two arms, each on a bus of its own: the follower at HOME, the leader held at AWAY by a hand."""
    before, found, scenes = sys.getswitchinterval(), {}, []
    sys.setswitchinterval(1e-4)
    try:
        for name in ("follower", "leader"):
            scene = TableScene(32)
            scene.reset()
            scene.data.qpos[:6] = scene.data.ctrl[:6] = HOME if name == "follower" else AWAY
            arm = ServoArm(scene)
            (tmp_path / f"{name}.json").write_text(json.dumps(arm.calibrate()))
            arm.hand = None if name == "follower" else AWAY
            found[name] = ServoPort(arm, tmp_path / name).__enter__()
            scenes.append(scene)
        yield found
    finally:
        for port in found.values():
            port.__exit__(None, None, None)
        for scene in scenes:
            scene.close()
        sys.setswitchinterval(before)


ON_BUS = ("robot.port=follower", "robot.id=follower", "robot.calibration_dir=.", "instruction=wave")


def on_bus(*given: str, ends: int = 0) -> None:
    """Connecting may fail on a busy machine, on which the emulated servos answer too late."""
    assert ends in (record(*ON_BUS, *given, robot="so101") for _ in range(4))


LEAD = ("leader_port=leader", "leader_id=leader", "leader_calibration_dir=.")


def test_a_leader_far_away_is_approached_within_the_limits(
    ports: dict[str, ServoPort], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[np.ndarray] = []
    command = LeRobotRobot.command

    def listen(robot: LeRobotRobot, action: np.ndarray) -> None:
        command(robot, action)
        told.append(action)

    monkeypatch.setattr(LeRobotRobot, "command", listen)
    for _ in range(4):  # on a busy machine the emulated servos may be silent for so long that the run ends
        told.clear()
        on_bus(*LEAD, "robot.velocity=1.0", "seconds=3", "episodes=1")
        if len(EpisodeStore.open("by-hand.zarr")):
            break
    (episode,) = list(EpisodeStore.open("by-hand.zarr"))
    assert np.abs(np.diff(told, axis=0)).max() <= 1.0 / 50 + 1e-6
    np.testing.assert_allclose(told[0], episode.state[0], atol=0.1)
    far, near = (np.linalg.norm(reached - AWAY) for reached in (episode.state[0], episode.action[-1]))
    assert near < 0.3 * far
    assert all(servo.torque for servo in ports["follower"].bus.servos)
    assert not any(servo.torque for servo in ports["leader"].bus.servos)


@pytest.mark.parametrize("keep", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_arm_that_is_unplugged_leaves_no_half_an_episode(
    keep: bool, ports: dict[str, ServoPort], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[Observation] = []
    step = ZarrRecorder.step

    def unplug(recorder: ZarrRecorder, seen: Observation, *rest: Any) -> None:
        step(recorder, seen, *rest)
        steps.append(seen)
        if len(steps) == 3:
            ports["follower"].unplug()

    monkeypatch.setattr(ZarrRecorder, "step", unplug)
    device(monkeypatch, lambda count: None)
    for _ in range(4):  # on a busy machine the emulated servos may be silent for so long that the run ends before
        if len(steps) < 3:
            steps.clear()
            on_bus("teleop=script", f"keep_unfinished={keep}", ends=4)
    store = EpisodeStore.open("by-hand.zarr")
    assert len(steps) >= 3 and not store.unfinished_frames and all(not r.success for r in store.records)
    assert len(store) >= 1 if keep else len(store) == 0
    assert "ended: robot: " in capsys.readouterr().out


def test_a_leader_tells_its_joints_and_its_faults(ports: dict[str, ServoPort]) -> None:
    port = ports["leader"]
    with ExitStack() as stack:
        for last in (False, False, False, True):
            try:
                leader = stack.enter_context(Leader("leader", "leader", "."))
                break
            except (RobotFault, InputError):
                if last:
                    raise
        operator = Operator(leader, ENV.embodiment, None, print)
        for last in (False, False, False, True):
            if (chunk := operator.predict(SEEN)) is not None or last:
                break
        assert chunk is not None and chunk.start == SEEN.time
        np.testing.assert_allclose(chunk.actions, np.repeat(AWAY[None], len(chunk.actions), 0), atol=0.02)
        port.bus.faults.corrupt = 1.0
        with pytest.raises(RobotFault) as raised:
            leader.read()
        assert raised.value.transient
        port.unplug()
        assert operator.predict(SEEN) is None and operator.end_reason and "leader" in operator.end_reason
    Path("leader.json").unlink()
    with pytest.raises(InputError, match="calibrate"), Leader("leader", "leader", "."):
        pass


ENV = make_env("pick", images=False).unwrapped
assert isinstance(ENV, SO101Env)
ENV.reset(seed=0)
SOLVER = fingertip_solver()
SEEN = Observation({}, HOME, "wave", 7.0)


class Words:
    """A device that says what it is given: words, or what it raises."""

    def __init__(self, *said: str | Exception) -> None:
        self.said = list(said)

    def read(self) -> Jog:
        said = self.said.pop(0)
        if isinstance(said, Exception):
            raise said
        return WORDS[said]


def test_nothing_moves_before_the_first_jog_and_then_from_where_the_arm_is() -> None:
    operator = Operator(Words("wait", "x+", "wait", "save", "x+"), ENV.embodiment, SOLVER, print)
    assert operator.predict(SEEN) is None
    first, second = operator.predict(SEEN), operator.predict(SEEN)
    assert first is not None and second is not None
    assert np.abs(first.actions[0] - HOME).max() < 0.3 and (first.actions == second.actions).all()
    operator.predict(SEEN)
    assert operator.end_reason == "save" and operator.predict(SEEN) is None  # what follows is of the next episode
    operator.reset()
    assert operator.end_reason is None and operator.predict(SEEN) is not None


def test_a_device_may_fail_now_and_then_but_not_for_long() -> None:
    silent = RobotFault("silent", transient=True)
    operator = Operator(Words(*[silent] * FAULTS, "x+", *[silent] * (FAULTS + 1)), ENV.embodiment, SOLVER, print)
    assert [operator.predict(SEEN) for _ in range(FAULTS)] == [None] * FAULTS and operator.end_reason is None
    assert operator.predict(SEEN) is not None
    for _ in range(FAULTS + 1):
        assert operator.predict(SEEN) is None
    assert operator.end_reason == "silent"
    gone = Operator(Words(InputError("the gamepad is gone")), ENV.embodiment, SOLVER, print)
    assert gone.predict(SEEN) is None and gone.end_reason == "the gamepad is gone"


def test_keys_of_a_terminal_even_in_pieces() -> None:
    master, slave = pty.openpty()
    pressed: list[int] = []
    with Terminal(pressed.append, slave) as terminal:
        for typed, event in (
            (b"", None),
            (b"\x1b[A6", None),
            (b"\x1b[", None),
            (b"5~w\x1bx\r", Event.SAVE),
            (b"r", Event.DISCARD),
            (b"\x7f", Event.DISCARD),
            (b"\x1b[C\x1b[Hq", Event.QUIT),
        ):
            os.write(master, typed)
            assert terminal.poll() is event, typed
        assert pressed == [265, ord("6"), 266, 262]
        os.close(master)
        assert terminal.poll() is Event.QUIT and terminal.poll() is None
    os.close(slave)


def test_the_keyboard_of_the_terminal_moves_the_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    monkeypatch.setattr("vla.commands.record_robot.Terminal", lambda press: Terminal(press, slave))
    monkeypatch.setattr(os, "isatty", lambda number: True)
    os.write(master, b"\x1b[A")
    command = SimRobot.command

    def type_on(robot: SimRobot, action: np.ndarray) -> None:
        command(robot, action)
        robot.count = getattr(robot, "count", 0) + 1  # type: ignore[attr-defined]
        os.write(master, {20: b"\x1b[A7", 60: b"\r"}.get(robot.count, b""))  # type: ignore[attr-defined]

    monkeypatch.setattr(SimRobot, "command", type_on)
    assert record("teleop=keyboard", "episodes=1") == 0
    (episode,) = list(EpisodeStore.open("by-hand.zarr"))
    assert episode.success and episode.info["teleop"] == "keyboard" and np.ptp(episode.action[:, 5]) > 0.1
    os.close(slave)
    os.close(master)


GUIDE = (Path(__file__).parents[1] / "docs" / "arm.md").read_text()


def guide() -> list[list[str]]:
    """The `vla` commands of docs/arm.md."""
    text = "\n".join(re.findall(r"```bash\n(.*?)```", GUIDE, flags=re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("vla ")]


@pytest.mark.parametrize("command", guide(), ids=" ".join)
def test_every_command_of_the_guide_composes(command: list[str]) -> None:
    name, *given = command
    overrides, _ = cli.parse(name, given)
    options.compose(name, overrides)


@pytest.mark.slow
def test_from_a_recording_to_the_policy_on_the_arm() -> None:
    """The guide's commands after the recording, on the simulated arm and at a small size."""
    scripted("x+ x+ x+ x+ x+ x+ save " * 4, "episodes=4", "instruction='pick up the red cube'")
    small = ["backbone=scratch", "plan.steps=2", "plan.batch_size=4", "plan.evaluate_every=2"]
    for name, *given in guide():
        if (
            "outputs/red.zarr" not in " ".join(given)
            and "policy=outputs/red" not in given
            or name in ("record", "view")
        ):
            continue
        kept = [g.replace("outputs/red.zarr", "by-hand.zarr") for g in given if not g.startswith(("robot", "loop"))]
        assert cli.main([name, *kept, *{"train": small, "deploy": ["seconds=0.5"]}.get(name, [])]) == 0
    assert Path("outputs/red-deployed/deploy.json").exists()

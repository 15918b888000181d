"""`vla play` and `vla view task=`: an arm moved by hand, its episodes, and what the devices say."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vla.commands import cli
from vla.commands.play import play
from vla.datasets.episodes import EpisodeStore
from vla.envs.make import make_env
from vla.envs.primitives import tip_of
from vla.envs.so101 import SO101Env
from vla.envs.viewer import SIZE, side_by_side
from vla.errors import InputError
from vla.robots.teleoperators.gamepad import AXIS, BUTTON, BUTTONS, EVENT, FULL, INITIAL, Gamepad
from vla.robots.teleoperators.keyboard import KEYS, Keyboard
from vla.robots.teleoperators.script import Script
from vla.robots.teleoperators.teleoperator import STEP, WORDS, Event, Jog


@pytest.fixture(autouse=True)
def no_screen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


def run(script: str, task: str = "pick", seed: int = 3) -> EpisodeStore:
    Path("script.txt").write_text(script)
    play(task=task, seed=seed, device="script", joystick="", script="script.txt", out="played.zarr")
    return EpisodeStore.open("played.zarr")


def test_an_episode_replays_to_the_same_states() -> None:
    store = run("wait x+ x+ z- z- turn+ close wait y+ save")
    assert len(store) == 1
    episode = store[0]
    assert (len(episode), episode.success, episode.info["seed"], episode.info["policy"]) == (8, False, 3, "script")
    env = make_env("pick", holdout=True)
    seen, info = env.reset(seed=3)
    assert episode.instruction == info["instruction"]
    for t, action in enumerate(episode.action):
        np.testing.assert_array_equal(seen["state"], episode.state[t])
        np.testing.assert_array_equal(seen["images"]["wrist"], episode.images["wrist"][t])
        seen, *_ = env.step(action)
    env.close()


def test_a_task_that_is_met_is_saved_as_a_success_and_the_next_scene_follows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    env = make_env("press", holdout=True, images=False).unwrapped
    assert isinstance(env, SO101Env)
    env.reset(seed=0)
    off = env.scene.fixture_position(env.target) - tip_of(env.scene)
    env.close()
    over = [
        f"{axis}{'+' if d > 0 else '-'}"
        for axis, d in zip("xy", off, strict=False)
        for _ in range(round(abs(d) / STEP))
    ]
    store = run(" ".join(["close", *over, *["wait"] * 5, *["z-"] * 12, *["wait"] * 5]), "press", 0)
    assert [(r.success, r.info["seed"]) for r in store.records] == [(True, 0)]
    assert "scene 1" in capsys.readouterr().out


@pytest.mark.parametrize("script", ["x+ x+ discard", "x+ next x+ quit", "x+ x+", "save", "", "quit"])
def test_what_is_not_saved_leaves_nothing_and_is_no_success(script: str) -> None:
    with pytest.raises(InputError, match="the script saved no episode: save stores"):
        run(script)
    assert not Path("played.zarr").exists()
    assert len(run("x+ save")) == 1
    with pytest.raises(InputError, match="saved no episode"):
        run(script)
    assert len(EpisodeStore.open("played.zarr")) == 1


def test_scenes_go_on_past_those_that_the_store_holds() -> None:
    run("x+ save next x+ save")
    store = run("x+ discard x- x- save")
    assert [(r.info["seed"], r.length) for r in store.records] == [(3, 1), (5, 1), (4, 2)]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["device=script"], "script=FILE"),
        (["device=script", "script=none.txt"], "none.txt"),
        (["device=script", "script=bad.txt"], "jump"),
        (["device=script", "script=good.txt", "task=bimanual-lift"], "one SO-101"),
        (["device=script", "script=good.txt", "task=juggle"], "juggle"),
        (["device=script", "script=good.txt", "seed=-1"], "0 or more"),
        (["device=mouse"], "keyboard, gamepad, script"),
        (["device=gamepad", "joystick=none"], "no gamepad at none"),
        ([], "device=script"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.txt").write_text("x+ jump")
    Path("good.txt").write_text("x+ save")
    assert cli.main(["play", *arguments]) == 2
    assert named in capsys.readouterr().err
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["bad.txt", "good.txt"]


ENV = make_env("pick", images=False).unwrapped
assert isinstance(ENV, SO101Env)
ENV.reset(seed=0)


def test_keys_pressed_between_two_steps_count_once_and_together() -> None:
    codes, keyboard = {word: code for code, word in KEYS.items()}, Keyboard()
    for word in ("x+", "x+", "y-", "close", "close"):
        keyboard.press(codes[word])
    keyboard.press(ord("W"))
    assert keyboard.read() == Jog((STEP, -STEP, 0.0), close=True)
    assert keyboard.read() == Jog() and not keyboard.read().moves
    keyboard.press(codes["save"])
    assert keyboard.read().event is Event.SAVE


def test_every_command_but_waiting_has_a_key() -> None:
    assert sorted(KEYS.values()) == sorted(WORDS.keys() - {"wait"})


def event(value: int, kind: int, number: int) -> bytes:
    return EVENT.pack(0, value, kind, number)


def test_a_gamepad_is_read_from_its_bytes() -> None:
    os.mkfifo("js0")
    pad = Gamepad("js0")
    with open("js0", "wb", buffering=0) as device:
        assert pad.read() == Jog()
        device.write(event(-FULL, AXIS, 1) + event(FULL // 2, AXIS | INITIAL, 0) + event(900, AXIS, 4))
        jog = pad.read()
        assert jog.delta == pytest.approx((STEP, -STEP / 2, 0), abs=1e-6) and jog.event is None
        assert pad.read() == jog  # a stick stays where it is without another event
        save = next(number for number, word in BUTTONS.items() if word == "save")
        pressed = event(0, AXIS, 1) + event(0, AXIS, 0) + event(1, BUTTON, 0) + event(1, BUTTON, save)
        device.write(pressed[:-3])
        assert pad.read() == Jog(close=True)
        device.write(pressed[-3:] + event(0, BUTTON, save))  # the rest of an event that was cut
        assert pad.read() == Jog(event=Event.SAVE)
        device.write(event(1, BUTTON | INITIAL, save))
        assert pad.read() == Jog()
    pad.close()


def test_a_scripted_episode_begins_with_its_first_movement() -> None:
    script = Script(["wait", "x+", "wait", "save", "wait", "wait", "discard", "wait", "close", "wait"])
    words = ["x+", "wait", "save", "discard", "close", "wait", "quit", "quit"]
    assert [script.read() for _ in words] == [WORDS[word] for word in words]


def test_an_episode_without_motion_is_not_saved_and_its_scene_comes_again(capsys: pytest.CaptureFixture[str]) -> None:
    store = run("save close close close save close x+ save")
    assert [(r.info["seed"], r.length) for r in store.records] == [(3, 3), (4, 2)]
    said = capsys.readouterr().out
    assert said.count("not saved: the arm has not moved in this episode") == 1 and said.count("scene 3") == 2


def test_jogs_that_do_not_move_the_arm_say_why_once(capsys: pytest.CaptureFixture[str]) -> None:
    run("z- " * 16 + "save")
    assert capsys.readouterr().out.count("the fingertips do not go below 1 cm above the table") == 1


def test_a_script_ends_by_quitting() -> None:
    script = Script(["z+"])
    assert [script.read().delta[2], script.read().event, script.read().event] == [STEP, Event.QUIT, Event.QUIT]


@pytest.mark.parametrize("save", [["--save", "seen/scene.png"], []])
def test_an_environment_becomes_a_picture(save: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["view", "task=pick", "seed=2", *save]) == 0
    said = capsys.readouterr().out
    assert ENV.reset(seed=2)[0]["instruction"] in said
    with Image.open(save[1] if save else "outputs/pick-2.png") as picture:
        assert picture.size == (2 * SIZE, SIZE)
        assert np.asarray(picture).std() > 10


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "path=STORE"),
        (["a.zarr", "task=pick"], "task=TASK"),
        (["task=juggle"], "juggle"),
        (["task=pick", "--save", "x.rrd"], "x.png"),
        (["task=pick", "seed=-1"], "0 or more"),
    ],
)
def test_a_mistake_of_view_is_named(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["view", *arguments]) == 2
    assert named in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []


def test_images_of_other_sizes_stand_beside_each_other() -> None:
    high, wide = np.full((4, 2, 3), 7, np.uint8), np.full((3, 5, 3), 9, np.uint8)
    both = side_by_side({"a": high, "b": wide})
    assert both.shape == (4, 7, 3) and (both[:, :2] == 7).all() and (both[:3, 2:] == 9).all() and not both[3, 2:].any()


def test_a_joystick_that_is_a_folder() -> None:
    with pytest.raises(InputError, match="gone"):
        Gamepad(".").read()

"""`vla play`: a simulated arm moved by hand, its episodes recorded."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from vla.datasets.episodes import EpisodeStore
from vla.datasets.open_folder import open_folder
from vla.envs.make import make_env
from vla.envs.so101 import SO101Env, to_observation
from vla.envs.viewer import Window
from vla.errors import InputError
from vla.recording.recorder import Recorder
from vla.recording.session_end import UNMOVED, Motion, check_script_saved, print_episode_count
from vla.recording.zarr_recorder import ZarrRecorder
from vla.robots.teleoperators import gamepad, keyboard
from vla.robots.teleoperators.cartesian_jog import CartesianJog, fingertip_solver
from vla.robots.teleoperators.devices import open_device
from vla.robots.teleoperators.teleoperator import Event, Teleop

if TYPE_CHECKING:
    from vla.kinematics.solver import KinematicSolver

HEADLESS = "use device=script script=FILE (vla play --help)"


def play(*, task: str, seed: int, device: str, joystick: str, script: str | None, out: str) -> None:
    """Moves the arm by `device` in the scenes of `seed` and those after it, and appends episodes to the store `out`.

    An episode ends when the task is met, or is saved as it is; there is no limit of steps. It begins with the first
    movement: until then the scene stands still. What is discarded, in which the arm did not move, or under way at the
    end, leaves nothing. Scenes are drawn as `vla record` draws them, held-out pairs left out.

    Raises InputError for a script that keeps no episode, for an unknown task, one without a single SO-101, a device
    that is not there, no screen, and a store of another embodiment, before anything is written.
    """
    if seed < 0:
        raise InputError(f"the seed must be 0 or more, not {seed}")
    with ExitStack() as stack:
        teleop = open_device(device, joystick, script, stack)
        env = make_env(task, holdout=True).unwrapped
        stack.callback(env.close)
        if not isinstance(env, SO101Env) or len(env.scene.arms) > 1:
            raise InputError(f"{task} cannot be played: a task with one SO-101 can, such as task=pick")
        begun = open_folder(out).exists("")
        window = None
        if begun:
            EpisodeStore.open(out).embodiment.check(env.embodiment)
        if device != "script":
            press = teleop.press if isinstance(teleop, keyboard.Keyboard) else None
            env.reset(seed=seed)
            window = stack.enter_context(Window(env, HEADLESS, press))
            print(gamepad.HELP if device == "gamepad" else keyboard.HELP)
        store = stack.enter_context(EpisodeStore.open(out, "a") if begun else EpisodeStore.create(out, env.embodiment))
        before = len(store)
        held = {record.info.get("seed") for record in store.records if record.info.get("task") == task}
        desk = _Desk(env, teleop, fingertip_solver(), ZarrRecorder(store, env.embodiment), window)
        for scene in (s for s in count(seed) if s not in held):
            event = Event.DISCARD
            while event is Event.DISCARD:
                event = desk.episode(task=task, seed=scene, policy=device)
            if event is Event.QUIT:
                break
        print_episode_count(out, store, before)
        if device == "script":
            check_script_saved(out, store, before)


@dataclass
class _Desk:
    """Where the operator sits: the arm, what moves it, who records it, and the window on it, if there is one."""

    env: SO101Env
    teleop: Teleop
    solver: KinematicSolver
    recorder: Recorder
    window: Window | None

    def episode(self, *, seed: int, **info: Any) -> Event:
        """Plays the scene of `seed` until the task is met or the operator decides; kept if and only if SAVE, which an
        episode without motion turns into DISCARD."""
        env, hz = self.env, self.env.embodiment.control_hz
        seen, told = env.reset(seed=seed)
        joints = env.scene.data.qpos[env.scene.arms[0].joints]  # a view: where they are from now on
        jogging = CartesianJog(self.solver, env.embodiment, joints, _show)
        motion, steps, due = Motion(), 0, time.monotonic()
        motion.add(joints, joints)
        print(f"scene {seed}: {told['instruction']}", flush=True)
        self.recorder.start(told["instruction"], seed=seed, **info)
        while True:
            if self.window is not None and not self.window.show(told["instruction"]):
                return self._end(Event.QUIT, False, motion)
            jog = self.teleop.read()
            if jog.event:
                return self._end(jog.event, False, motion)
            if steps or jog.moves:
                action = jogging.act(jog, joints)
                self.recorder.step(to_observation(seen, steps / hz), action, points=told["points"])
                seen, _, met, _, told = env.step(action)
                motion.add(joints, action)
                steps += 1
                if met:
                    return self._end(Event.SAVE, True, motion)
            if self.window is not None:
                # Deadlines are absolute, so that errors do not add up; a step that came late does not hurry the next.
                due = max(due + 1 / hz, time.monotonic())
                time.sleep(max(0.0, due - time.monotonic()))

    def _end(self, event: Event, success: bool, motion: Motion) -> Event:
        if event is Event.SAVE and not motion.moved:
            print(f"  {UNMOVED}", flush=True)
            event = Event.DISCARD
        if event is Event.SAVE:
            self.recorder.finish(success)
            print(f"  saved: {'the task is met' if success else 'the task is not met'}", flush=True)
        else:
            self.recorder.abort()
        return event


def _show(reason: str) -> None:
    print(f"  {reason}", flush=True)

"""`vla play`: teleoperation of a simulated arm, with recording."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from vla.commands.operation_checks import HEADLESS, check_play
from vla.datasets.episodes import EpisodeStore
from vla.datasets.open_folder import open_folder
from vla.envs.make import make_env, not_one_arm
from vla.envs.so101 import SO101Env, to_observation
from vla.envs.viewer import Window
from vla.recording.recorder import Recorder
from vla.recording.session_end import UNMOVED, Motion, check_script_saved, print_episode_count
from vla.recording.zarr_recorder import ZarrRecorder
from vla.robots.teleoperators import gamepad, keyboard
from vla.robots.teleoperators.cartesian_jog import CartesianJog, fingertip_solver
from vla.robots.teleoperators.devices import open_device
from vla.robots.teleoperators.teleoperator import Event, Teleop

if TYPE_CHECKING:
    from vla.kinematics.solver import KinematicSolver


def play(*, task: str, seed: int, device: str, joystick: str, script: str | None, out: str) -> None:
    """Teleoperates the arm in simulated scenes, and appends the episodes to a store.

    An episode starts with the first movement and ends when the task succeeds or the operator saves it; there is no
    limit of steps. Nothing is stored of an episode that is discarded, in which the arm did not move, or that is
    unfinished when the session ends. Scenes are sampled as in `vla record`, without the held-out pairs.

    Args:
        task: A task with one SO-101.
        seed: Seed of the first scene; the following scenes have the following seeds.
        device: Input device, or "script".
        joystick: Joystick device of the gamepad.
        script: File with one command per step, for device "script".
        out: The store.

    Raises:
        InputError: The task, the device or the screen is not available, the store has another embodiment (nothing is
            written in these cases), or a script saves no episode.
    """
    check_play(device, joystick, script, seed)
    with ExitStack() as stack:
        teleop = open_device(device, joystick, script, stack)
        env = make_env(task, holdout=True).unwrapped
        stack.callback(env.close)
        if not isinstance(env, SO101Env) or len(env.scene.arms) > 1:
            raise not_one_arm(task)
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
        recorded = {record.info.get("seed") for record in store.records if record.info.get("task") == task}
        session = _PlaySession(env, teleop, fingertip_solver(), ZarrRecorder(store, env.embodiment), window)
        for scene in (s for s in count(seed) if s not in recorded):
            event = Event.DISCARD
            while event is Event.DISCARD:
                event = session.episode(task=task, seed=scene, policy=device)
            if event is Event.QUIT:
                break
        print_episode_count(out, store, before)
        if device == "script":
            check_script_saved(out, store, before)


@dataclass
class _PlaySession:
    """The arm, its input device and recorder, and the window, if there is one."""

    env: SO101Env
    teleop: Teleop
    solver: KinematicSolver
    recorder: Recorder
    window: Window | None

    def episode(self, *, seed: int, **metadata: Any) -> Event:
        """Runs one scene until the task succeeds or the operator ends it, and stores it if the returned event is SAVE.

        SAVE of an episode without motion becomes DISCARD.
        """
        env, hz = self.env, self.env.embodiment.control_hz
        observation, info = env.reset(seed=seed)
        joints = env.scene.data.qpos[env.scene.arms[0].joints]  # a view, which follows the simulation
        jogging = CartesianJog(self.solver, env.embodiment, joints, _show)
        motion, steps, due = Motion(), 0, time.monotonic()
        motion.add(joints, joints)
        print(f"scene {seed}: {info['instruction']}", flush=True)
        self.recorder.start(info["instruction"], seed=seed, **metadata)
        while True:
            if self.window is not None and not self.window.show(info["instruction"]):
                return self._end(Event.QUIT, False, motion)
            jog = self.teleop.read()
            if jog.event:
                return self._end(jog.event, False, motion)
            if steps or jog.moves:
                action = jogging.act(jog, joints)
                self.recorder.step(to_observation(observation, steps / hz), action, points=info["points"])
                observation, _, met, _, info = env.step(action)
                motion.add(joints, action)
                steps += 1
                if met:
                    return self._end(Event.SAVE, True, motion)
            if self.window is not None:
                # Deadlines are absolute, so that errors do not accumulate; a late step does not shorten the next.
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

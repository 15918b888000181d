"""Past frames in training: which they are, what a row makes of them, and that a policy is later shown the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_store
from test_loader import assert_same, made

from vla.datasets.episodes import EpisodeStore
from vla.datasets.mixture import Mixture
from vla.datasets.windows import Windows
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.evaluation.heldout import action_errors
from vla.models.continued import Ranges, continued
from vla.models.engine.engine import Engine
from vla.models.processor import Processor
from vla.models.robot_spec import RobotSpec
from vla.models.vla import VLA
from vla.policies.history import FrameHistory
from vla.policies.vla import VlaPolicy
from vla.training.batches import micro_batches, spare
from vla.training.distributed import DistributedContext
from vla.training.history import history_steps, with_history
from vla.training.train_config import TrainConfig
from vla.types import Episode, Example, Observation

Models = Callable[..., VLA]
MakeEpisode = Callable[..., Episode]
ALONE = DistributedContext(torch.device("cpu"))
SIZES = {"front": (24, 32), "wrist": (16, 12), "top": (32, 32)}
CAMERAS: Mapping[str, tuple[str, ...]] = {"slow": ("front", "wrist"), "fast": ("top",)}
RATES = {"slow": 10.0, "fast": 50.0}


def recorded(make_episode: MakeEpisode, name: str, seed: int, steps: int = 14) -> Episode:
    """An episode of one of two robots, of other cameras and another rate than the other's."""
    rng, cameras = np.random.default_rng(seed), CAMERAS[name]
    made = make_episode(seed, steps=steps)
    body: Embodiment = replace(made.embodiment, name=name, cameras=cameras, control_hz=RATES[name])
    images = {camera: rng.integers(0, 256, (steps, *SIZES[camera], 3), np.uint8) for camera in cameras}
    # A clock that is up to a third of a step early or late.
    time = 7.0 + (np.arange(steps) + rng.uniform(-0.2, 0.2, steps)) / RATES[name]
    return replace(made, images=images, embodiment=body, time=time)


def stored(folder: Path, episodes: list[Episode]) -> EpisodeStore:
    write_store(folder, episodes)
    return EpisodeStore.open(folder)


@pytest.fixture
def stores(make_episode: MakeEpisode, tmp_path: Path) -> dict[str, EpisodeStore]:
    return {
        name: stored(tmp_path / name, [recorded(make_episode, name, seed, 5 + 9 * seed) for seed in range(2)])
        for name in RATES
    }


def pair(make_model: Models, **fields: Any) -> VLA:
    """A model that drives both robots, shown 0.4 s and 0.2 s, or 0.06 s, before the present."""
    base, toy = make_model(robot=False), make_model().processor.robot()
    robots = [
        replace(
            toy,
            embodiment=replace(toy.embodiment, name=name, cameras=CAMERAS[name], control_hz=RATES[name]),
            history=history_steps([0.2, 0.4] if name == "slow" else [0.06], RATES[name]),
            **fields,
        )
        for name in RATES
    ]
    return VLA(base.backbone, Processor(base.processor.tokenizer, 32, base.backbone.tokens_per_image, robots)).eval()


def test_seconds_are_steps_at_each_rate(make_model: Models, capsys: pytest.CaptureFixture[str]) -> None:
    assert history_steps([0.5, 1.0], 10.0) == (10, 5) and history_steps([0.5, 1.0], 50.0) == (50, 25)
    assert history_steps([], 10.0) == ()
    with pytest.raises(InputError, match=r"0.04 s is less than a step at 10 Hz: the minimum is 0.1 s"):
        history_steps([0.5, 0.04], 10.0)
    with pytest.raises(InputError, match=r"0.52 s and 0.5 s are 5 steps at 10 Hz: remove one"):
        history_steps([0.5, 0.52], 10.0)
    robots = pair(make_model).processor.robots
    slow, fast = with_history(robots, [0.5, 0.33])
    assert (slow.history, fast.history) == ((5, 3), (25, 16))
    assert slow.history_seconds == (0.5, 0.3) and fast.history_seconds == (0.5, 0.32)
    assert capsys.readouterr().out.splitlines() == [
        "plan.history of slow: 0.33 s is 3 steps, 0.3 s",
        "plan.history of fast: 0.33 s is 16 steps, 0.32 s",
    ]
    with pytest.raises(InputError, match="plan.history needs a robot"):
        with_history([], [0.5])
    for wrong in ((0.0,), (-1.0,), (float("inf"),), (float("nan"),)):
        with pytest.raises(InputError, match="plan.history is a list of seconds above 0"):
            TrainConfig(steps=1, history=wrong)


def test_windows_have_the_frames_of_their_episode(stores: dict[str, EpisodeStore]) -> None:
    store, steps = stores["slow"], (4, 2)
    windows = Windows(store, 3, history=steps)
    begins = [0] * 5 + [5] * 14
    chosen = np.array([18, 0, 5, 3, 8, 12, 6])
    batch = windows.batch(chosen)
    for row, index in enumerate(chosen.tolist()):
        example = windows[index]
        assert [bool(images) for images in example.past] == [index - k >= begins[index] for k in steps]
        assert batch.past_mask[row].tolist() == [bool(images) for images in example.past]
        for at, images in enumerate(example.past):
            for camera, image in images.items():
                np.testing.assert_array_equal(image, store.frames(camera, [index - steps[at]])[0])
                np.testing.assert_array_equal(batch.past[at][camera][row], image)
    without = Windows(store, 3)
    assert without[9].past == () and without.batch(chosen).past == ()


@pytest.mark.parametrize("name", RATES)
def test_what_is_trained_is_what_is_shown_later(make_model: Models, stores: dict[str, EpisodeStore], name: str) -> None:
    """Each step of an episode as a training row, and replayed to a policy: the same tokens and pixels, to the bit."""
    model, store = pair(make_model), stores[name]
    processor, robot = model.processor, model.processor.robot(name)
    windows, policy = Windows(store, 4, history=robot.history), VlaPolicy(model, name)
    frames = FrameHistory.of(policy)
    assert policy.history == ((0.4, 0.2) if name == "slow" else (0.06,))
    cameras, counts, index = len(CAMERAS[name]), set(), 0
    for episode in store:
        frames.reset()
        for t in range(len(episode)):
            trained = processor.batch([windows.example(index, np.random.default_rng(0))])
            images = {camera: of[t].copy() for camera, of in episode.images.items()}
            seen = frames.with_past_frames(
                Observation(images, episode.state[t], episode.instruction, float(episode.time[t]))
            )
            for image in images.values():
                image[:] = 0 if t % 2 else image  # the robot may use its memory again
            seen = replace(seen, images={camera: of[t] for camera, of in episode.images.items()})
            prompt = processor.robot_prompt([seen], name)
            length = prompt.input_ids.shape[1]
            torch.testing.assert_close(prompt.input_ids, trained.input_ids[:, :length], rtol=0, atol=0)
            for field in ("images", "image_mask", "content", "tiling", "state"):
                torch.testing.assert_close(getattr(prompt, field), getattr(trained, field), rtol=0, atol=0)
            moments = 1 + sum(t >= steps for steps in robot.history)
            assert int(prompt.image_mask.sum()) == moments * cameras
            tokens = int((prompt.input_ids == processor.image).sum())
            assert tokens == moments * cameras * processor.tokens_per_image
            counts.add(moments)
            index += 1
    assert counts == set(range(1, len(robot.history) + 2)) and index == len(windows)


def test_processes_read_past_frames_too(make_model: Models, stores: dict[str, EpisodeStore]) -> None:
    model = pair(make_model)
    sources = {name: Windows(store, 4, history=model.processor.robot(name).history) for name, store in stores.items()}
    mixture = Mixture(sources, dict.fromkeys(sources, 1.0), 0)
    fields = {"steps": 4, "batch_size": 12, "accumulate": 2, "augment": {"shift": 0.1}}
    expected = made(model, mixture, 0, **fields)
    assert {int(n) for micro in expected for batch in micro for n in batch["image_mask"].sum(1)} >= {1, 2, 4, 6}
    assert_same(made(model, mixture, 1, **fields), expected)


def test_frames_of_a_camera_move_alike(make_model: Models, stores: dict[str, EpisodeStore]) -> None:
    model = pair(make_model, fewer_cameras=True)
    windows = Windows(stores["slow"], 4, history=model.processor.robot("slow").history)
    plan = TrainConfig(
        steps=1, batch_size=19, augment={"shift": 0.1, "rotation": 5.0}, camera_dropout=0.3, precision="fp32"
    )
    (batch,) = micro_batches(model.processor, Mixture({"robot": windows}, {"robot": 1.0}, 0), plan, 0, ALONE)
    complete = 0
    for warp, mask in zip(batch.warp, batch.image_mask, strict=True):
        shown, still = warp[mask], (warp[mask] == torch.eye(3)).flatten(1).all(1).tolist()
        moved = [matrix for matrix, is_still in zip(shown, still, strict=True) if not is_still]
        assert all(torch.equal(matrix, moved[0]) for matrix in moved)
        if len(shown) == 6:  # the wrist's geometry is kept
            complete += 1
            assert still == [False, True] * 3
        else:
            assert still in ([False] * len(still), [True] * len(still), [False, True] * (len(still) // 2))
    assert complete > 3


def test_history_is_saved_and_asked_for(make_model: Models, stores: dict[str, EpisodeStore], tmp_path: Path) -> None:
    model = pair(make_model)
    model.save(tmp_path)
    again = VLA.load(tmp_path)
    assert [robot.history for robot in again.processor.robots] == [(4, 2), (3,)]
    old = again.processor.robot("slow").to_dict()
    del old["history"]
    assert RobotSpec.from_dict(old).history == ()
    with pytest.raises(InputError, match=r"history is \(\) in the checkpoint, \(4, 2\) for the data"):
        RobotSpec.from_dict(old).check(again.processor.robot("slow"))
    example = Windows(stores["slow"], 4, history=(4, 2))[-1]
    assert example.state is not None
    seen = Observation(example.images, example.state, example.prompt, 0.0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="slow: this policy needs frames of 2 past moments, not of 0"):
        again.processor.robot_prompt([seen], "slow")
    with pytest.raises(InputError, match="not of 0"):
        again.processor.batch([replace(example, past=())])
    row = again.processor.batch([spare(again.processor), example])
    assert row.image_mask.sum(1).tolist() == [2, 6] or again.processor.robots[0].name == "fast"
    error, _ = action_errors(again, [example, Windows(stores["slow"], 4, history=(4, 2))[1]])
    assert np.isfinite(error)


def test_a_policy_goes_on_with_its_history_or_another(make_model: Models, capsys: pytest.CaptureFixture[str]) -> None:
    for said, expected, line in (((), (5,), ""), ((7,), (7,), "a history of 7 steps in place of 5 steps")):
        model = make_model()
        assert model.processor.head is not None
        robot = replace(model.processor.robot(), history=(5,))
        model.processor = model.processor.with_robots([robot], model.processor.head.settings, "numbers")
        found = continued("before", model, [replace(robot, history=said)], {"kind": "parallel"}, Ranges())
        assert found.processor.robot().history == expected
        assert line in capsys.readouterr().out


@pytest.mark.parametrize("head", ["bins", "flow"])
def test_an_engine_acts_as_the_model_at_an_episodes_start(make_model: Models, head: str) -> None:
    """Rows of other numbers of images, together and each alone."""
    model = make_model(head=head)
    assert model.processor.head is not None
    robot = replace(model.processor.robot(), history=(6, 3))
    model.processor = model.processor.with_robots([robot], model.processor.head.settings, "numbers")
    engine, rng = Engine(model), np.random.default_rng(0)

    def views() -> dict[str, np.ndarray[Any, Any]]:
        return {camera: rng.integers(0, 256, (*SIZES[camera], 3), np.uint8) for camera in ("front", "wrist")}

    rows = [
        Observation(views(), rng.uniform(-1, 1, 2), "lift the ring " * (1 + there), 0.0, past)
        for there, past in enumerate((({}, {}), ({}, views()), (views(), views())))
    ]
    chunks = []
    for chosen in (rows, *([row] for row in rows)):
        batch = model.processor.robot_prompt(chosen)
        (ours, _), (theirs, _) = ((torch.manual_seed(3), m.generate_actions(batch))[1] for m in (engine, model))
        np.testing.assert_allclose(np.stack(ours), np.stack(theirs), atol=1e-4)  # type: ignore[arg-type]
        chunks.append(np.stack(theirs))  # type: ignore[arg-type]
    if head == "bins":  # a flow draws noise for each row
        np.testing.assert_allclose(chunks[0], np.concatenate(chunks[1:]), atol=1e-5)


def test_an_example_without_a_history_costs_nothing(make_model: Models) -> None:
    model, rng = make_model(), np.random.default_rng(0)
    images = {camera: rng.integers(0, 256, (*SIZES[camera], 3), np.uint8) for camera in ("front", "wrist")}
    example = Example(images, "lift the ring", np.zeros((4, 3)), np.zeros(2))
    assert model.processor.batch([example]).image_mask.tolist() == [[True, True]]
    seen = Observation(images, np.zeros(2), "lift the ring", 0.0)
    assert FrameHistory.of(VlaPolicy(model)).with_past_frames(seen) is seen

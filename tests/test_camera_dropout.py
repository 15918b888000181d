"""Cameras that are left out in training, and policies that act without them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_store
from serving import PlainClient, served

from vla.control.adapt import adapt
from vla.datasets.mixture import Mixture
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.models.batch import IGNORE, Batch
from vla.models.engine.engine import Engine
from vla.models.processor import Processor
from vla.models.robot_spec import RobotSpec
from vla.models.vla import VLA
from vla.policies.remote import RemotePolicy
from vla.policies.vla import VlaPolicy
from vla.training.batches import micro_batches
from vla.training.camera_dropout import check_dropout, report_dropout, without_cameras
from vla.training.cotrain import train
from vla.training.demonstrations import Demonstrations, robot_specs
from vla.training.distributed import DistributedContext
from vla.training.train_config import TrainConfig
from vla.types import Episode, Example, Observation

Models = Callable[..., VLA]
MakeEpisode = Callable[..., Episode]
SIZES = {"front": (24, 32), "wrist": (16, 12)}


def example(seed: int = 0) -> Example:
    """Two cameras of different sizes, with a point in each."""
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 256, (*size, 3), np.uint8) for camera, size in SIZES.items()}
    actions, state = rng.uniform(0, 1, (4, 3)), rng.uniform(-1, 1, 2)
    return Example(images, "lift the ring", actions, state, points=rng.random((2, 2)), embodiment="toy")


class Rows:
    """Examples of the toy robot, a source of a mixture."""

    def __len__(self) -> int:
        return 50

    def example(self, index: int, rng: np.random.Generator) -> Example:
        return example(index)


def mixture() -> Mixture:
    return Mixture({"robot": Rows()}, {"robot": 1.0}, 0)


def plan(**fields: Any) -> TrainConfig:
    values: dict[str, Any] = {"steps": 2, "batch_size": 40, "augment": {"shift": 0.1}, "precision": "fp32"}
    return TrainConfig(**(values | fields))


def trained(model: VLA, **fields: Any) -> VLA:
    """The model as it is after a training with camera dropout."""
    processor = model.processor
    robot = replace(processor.robot(), fewer_cameras=True, **fields)
    assert processor.head is not None
    made = Processor(processor.tokenizer, 32, processor.tokens_per_image, [robot], head=processor.head.settings)
    return VLA(model.backbone, made, model.smoothing).eval()


def observation(*cameras: str, seed: int = 0) -> Observation:
    seen = example(seed)
    assert seen.state is not None
    return Observation({camera: seen.images[camera] for camera in cameras}, seen.state, seen.prompt, 1.5)  # type: ignore[misc]


def tokens(batch: Batch, model: VLA) -> list[int]:
    """Image tokens of each row, in images."""
    return ((batch.input_ids == model.processor.image).sum(1) // model.processor.tokens_per_image).tolist()


def test_what_is_left_out_depends_on_the_row_alone(make_model: Models) -> None:
    model = trained(make_model(points=2))
    (batch,) = micro_batches(
        model.processor, mixture(), plan(camera_dropout=0.5), 1, DistributedContext(torch.device("cpu"))
    )
    counts = tokens(batch, model)
    assert set(counts) == {1, 2} and batch.image_mask.sum(1).tolist() == counts
    halves = [
        micro_batches(
            model.processor, mixture(), plan(camera_dropout=0.5), 1, DistributedContext(torch.device("cpu"), rank, 2)
        )[0]
        for rank in range(2)
    ]
    assert [tokens(half, model) for half in halves] == [counts[::2], counts[1::2]]
    torch.testing.assert_close(halves[0].warp[0], batch.warp[0])


def test_shares_and_the_last_camera() -> None:
    rows = [without_cameras(example(i), 0.3, (0, 1, i)) for i in range(600)]
    kept = {camera: np.mean([camera in row.images for row in rows]) for camera in SIZES}
    assert min(len(row.images) for row in rows) == 1
    # Both would be left out in 9 % of the rows; each then stays in half of these.
    assert all(abs(share - 0.745) < 0.06 for share in kept.values())
    assert all(len(without_cameras(example(i), 0.999, (0, 1, i)).images) == 1 for i in range(20))
    question = Example(example().images, "what color is the cube?", "red")
    assert without_cameras(question, 0.9, (0, 0, 0)) is question
    both = replace(example(), turns=(("what color is the cube?", "red"),))
    assert all(without_cameras(both, 0.9, (0, 0, i)) is both for i in range(20))
    # The other cameras, and their order, do not matter to one.
    seen = example()
    turned = replace(seen, images=dict(reversed(seen.images.items())), points=None)
    for key in range(30):
        assert set(without_cameras(seen, 0.3, (key,)).images) == set(without_cameras(turned, 0.3, (key,)).images)


def test_a_run_says_once_which_cameras_are_left_out_and_where_not(
    make_model: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = trained(make_model(points=2))
    train(model, mixture(), plan(camera_dropout=0.25, batch_size=2, loader_workers=0), tmp_path)
    said = "each dropped in 25.0% of the rows; at least one camera is retained; rows with questions keep all cameras"
    assert capsys.readouterr().out.count(f"camera dropout of toy: front, wrist, {said}\n") == 1
    robot = model.processor.robot()
    single = replace(robot, embodiment=replace(robot.embodiment, cameras=("front",)))
    assert list(report_dropout(0.1, [single])) == ["camera dropout of toy: none, it has one camera"]
    assert list(report_dropout(0.0, [robot])) == []


def test_points_of_a_camera_that_is_left_out_bear_no_loss(make_model: Models) -> None:
    model, seen = trained(make_model(points=2)), example()
    assert seen.points is not None
    for key in range(40):
        row = without_cameras(seen, 0.5, (key,))
        batch = model.processor.batch([row])
        labels = batch.labels[0, : batch.prompt_length[0]]
        assert (labels != IGNORE).sum() == 2 * len(row.images)
        place = list(SIZES).index(next(iter(row.images)))
        np.testing.assert_array_equal(row.points, seen.points[place : place + len(row.images)])


def test_observations_without_a_camera(make_model: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = make_model(points=2)
    with pytest.raises(InputError, match="camera wrist is missing .*plan.camera_dropout=0.1"):
        plain.processor.robot_prompt([observation("front")])
    model = trained(plain)
    model.save(tmp_path)
    model = VLA.load(tmp_path)
    assert model.processor.robot().fewer_cameras
    for _ in range(2):
        prompt = model.processor.robot_prompt([observation("front"), observation("front", "wrist")])
    assert capsys.readouterr().out == "toy acts without wrist, of its cameras front, wrist\n"
    assert tokens(prompt, model) == [1, 2] and prompt.image_mask.tolist() == [[True, False], [True, True]]
    with pytest.raises(InputError, match="camera front is missing"):
        model.processor.robot_prompt([observation()])
    old = model.processor.robot().to_dict()
    del old["fewer_cameras"]
    assert not RobotSpec.from_dict(old).fewer_cameras


@pytest.mark.parametrize("head", ["bins", "flow"])
def test_an_engine_acts_as_the_model_with_fewer_images(make_model: Models, head: str) -> None:
    model = trained(make_model(points=2, head=head))
    engine = Engine(model)
    rows = [observation("front"), observation("front", "wrist", seed=1), observation("wrist", seed=2)]
    torch.manual_seed(0)
    alone = []
    for chosen in (rows, *([row] for row in rows)):
        batch = model.processor.robot_prompt(chosen)
        (chunks, points), (expected, said) = (
            (torch.manual_seed(3), m.generate_actions(batch))[1] for m in (engine, model)
        )
        np.testing.assert_array_equal(points, said)
        np.testing.assert_allclose(np.stack(chunks), np.stack(expected), atol=1e-4)  # type: ignore[arg-type]
        alone.append(points)
    np.testing.assert_array_equal(alone[0], np.concatenate(alone[1:]))


def test_a_robot_with_some_of_the_cameras(make_model: Models) -> None:
    plain, body = make_model(points=2), make_model().processor.robot().embodiment
    slim = replace(body, cameras=("wrist",), action_high=(0.5, 0.5, 1.0))
    other = replace(body, cameras=("wrist", "top"))
    with pytest.raises(InputError, match="cameras: front, wrist, of the other wrist; .*plan.camera_dropout=0.1"):
        adapt(VlaPolicy(plain, slim), slim, None, {})
    model = trained(plain)
    policy = VlaPolicy(model, slim)
    assert adapt(policy, slim, None, {}) is policy and policy.embodiment == slim
    chunk = policy.predict(observation("wrist"))
    assert chunk is not None and chunk.points is not None and chunk.points.shape == (1, 2)
    assert chunk.actions[:, 0].max() <= 0.5
    with pytest.raises(InputError, match="other wrist, top; name the robot.s cameras as the policy does: front, wrist"):
        adapt(VlaPolicy(model, other), other, None, {})


def test_a_server_answers_without_a_camera(make_model: Models) -> None:
    model = trained(make_model(points=2))
    policy, seen = VlaPolicy(model), observation("wrist")
    message = {"images": dict(seen.images), "state": seen.state, "prompt": seen.instruction}
    with served(policy) as url:
        with PlainClient(url) as robot:
            assert robot.metadata["fewer_cameras"]
            assert robot.infer(message)["actions"].shape == (4, 3)
            with pytest.raises(RuntimeError, match="images/front: missing"):
                robot.infer(message | {"images": {}})
        remote = RemotePolicy(url, timeout=30)
        try:
            slim = replace(policy.embodiment, cameras=("wrist",))
            assert adapt(remote, slim, None, {}).embodiment == slim
            assert remote.predict(seen) is not None
        finally:
            remote.close()
    missing = pytest.raises(RuntimeError, match="images/front: missing")
    with served(VlaPolicy(make_model())) as url, PlainClient(url) as robot, missing:
        robot.infer(message)


def opened(folder: Path, episodes: list[Episode]) -> Demonstrations:
    write_store(folder, episodes)
    return Demonstrations.open(str(folder))


def without(episode: Episode, camera: str) -> Episode:
    cameras = tuple(name for name in episode.images if name != camera)
    body: Embodiment = replace(episode.embodiment, cameras=cameras)
    images = {name: frames for name, frames in episode.images.items() if name != camera}
    return replace(episode, images=images, embodiment=body)


def test_stores_of_one_robot_with_other_cameras(make_model: Models, make_episode: MakeEpisode, tmp_path: Path) -> None:
    episodes = [make_episode(seed, points=np.random.default_rng(seed).random((5, 2, 2))) for seed in range(3)]
    both = opened(tmp_path / "both", episodes)
    front = opened(tmp_path / "front", [replace(without(e, "wrist"), points=e.points[:, :1]) for e in episodes])  # type: ignore[index]
    with pytest.raises(InputError, match="toy differ in their cameras: front, wrist and front; .*camera_dropout=0.1"):
        robot_specs([front, both], 4)
    (robot,) = robot_specs([front, both], 4, fewer_cameras=True)
    assert robot == robot_specs([both, front], 4, fewer_cameras=True)[0]
    assert (robot.embodiment.cameras, robot.points, robot.fewer_cameras) == (("front", "wrist"), 2, True)
    # Each of the two may lack a camera that the other has.
    wrist = opened(tmp_path / "wrist", [replace(without(e, "front"), points=None) for e in episodes])
    assert robot_specs([wrist, front], 4, fewer_cameras=True)[0].embodiment.cameras == ("front", "wrist")
    base = make_model(robot=False)
    processor = Processor(base.processor.tokenizer, 32, base.backbone.tokens_per_image, [robot])
    model = VLA(base.backbone, processor)
    sources = {"a": both.windows(4), "b": front.windows(4)}
    settings = plan(batch_size=8, camera_dropout=0.01, loader_workers=0)
    mixed = Mixture(sources, {"a": 0.5, "b": 0.5}, 0)
    (batch,) = micro_batches(processor, mixed, settings, 0, DistributedContext(torch.device("cpu")))
    assert tokens(batch, model) == [2 if source == "a" else 1 for source in batch.source]
    assert train(model, mixed, settings, tmp_path / "run").step == 2


def test_what_does_not_fit_is_refused(make_model: Models) -> None:
    for share in (-0.1, 1.0):
        with pytest.raises(InputError, match="camera_dropout must be at least 0 and below 1"):
            plan(camera_dropout=share)
    robot = make_model().processor.robot()
    single = replace(robot, embodiment=replace(robot.embodiment, cameras=("front",)))
    check_dropout(0.1, [single, robot])
    check_dropout(0.0, [single])
    with pytest.raises(InputError, match="and there is toy"):
        check_dropout(0.1, [single])
    with pytest.raises(InputError, match="and there is no robot"):
        check_dropout(0.1, [])

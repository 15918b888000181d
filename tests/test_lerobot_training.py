"""`lerobot-train --policy.type=vla`: the model, the loss and the checkpoints of our own training."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from lerobot_plugin import command, dataset, run
from safetensors.torch import load_file

from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.models.normalization import Normalizer
from vla.models.robot_spec import RobotSpec
from vla.models.vla import VLA

pytestmark = pytest.mark.filterwarnings("default")  # of LeRobot's loop


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data") / "arm", episodes=4)


@pytest.fixture
def backbone(tmp_path: Path, make_model: Callable[..., VLA]) -> Path:
    make_model(robot=False).save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


@pytest.fixture
def lerobot_train(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """LeRobot's training script in this process."""
    from lerobot.scripts import lerobot_train as script

    root, step = logging.getLogger(), script.update_policy
    handlers, level = root.handlers[:], root.level

    def train(*arguments: str) -> list[float]:
        values: list[float] = []

        def update(metrics: Any, *inputs: Any, **options: Any) -> Any:
            out = step(metrics, *inputs, **options)
            values.append(metrics.loss.val)
            return out

        monkeypatch.setattr(script, "update_policy", update)
        monkeypatch.setattr(sys, "argv", ["lerobot-train", *arguments])
        script.train()
        return values

    yield train
    root.handlers[:] = handlers
    root.setLevel(level)


def options(data: Path, out: Path, **values: Any) -> list[str]:
    chosen: dict[str, Any] = {
        "policy.type": "vla",
        "policy.push_to_hub": "false",
        "policy.device": "cpu",
        "policy.horizon": 4,
        "dataset.repo_id": "tests/arm",
        "dataset.root": data,
        "output_dir": out,
        "num_workers": 0,
        "batch_size": 4,
        "log_freq": 1,
    }
    return [f"--{name}={value}" for name, value in (chosen | values).items()]


def metadata(root: Path) -> Any:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    return LeRobotDatasetMetadata("tests/arm", root=root)


def batch_of(root: Path, horizon: int) -> dict[str, Any]:
    """A batch at the ends of two episodes, so that chunks are padded, as LeRobot's loop gives it to a policy."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    rows = LeRobotDataset("tests/arm", root=root, delta_timestamps={"action": [i / 10 for i in range(horizon)]})
    return torch.utils.data.default_collate([rows[i] for i in (3, 4, 10, 11)])


@pytest.mark.parametrize("head", ["parallel", "flow"])
def test_the_loss_and_its_gradient_are_those_of_vla_train(
    plugin: ModuleType, data: Path, backbone: Path, tmp_path: Path, head: str
) -> None:
    """The dataset that `vla convert` converts, and the same rows of it."""
    from lerobot_policy_vla import VlaConfig
    from vla.datasets.conversion.selection import Request, Selection
    from vla.datasets.conversion.to_store import to_store
    from vla.datasets.windows import Windows
    from vla.training.demonstrations import Demonstrations
    from vla.training.distributed import DistributedContext
    from vla.training.state import Progress, TrainState
    from vla.training.step import backward
    from vla.training.train_config import TrainConfig

    config = VlaConfig(backbone=str(backbone), head=head, horizon=4, device="cpu")
    policy = plugin.VlaPolicy(config, dataset_meta=metadata(data)).eval()
    to_store(Selection(Request(str(data), "lerobot", {})), str(tmp_path / "store.zarr"), "zstd", quiet=True)
    demonstrations = Demonstrations.open(str(tmp_path / "store.zarr"))
    spec = policy.model.processor.robot()
    assert spec.embodiment.state == demonstrations.store.embodiment.state == ("lift.pos", "turn.pos")
    spec.embodiment.check(demonstrations.store.embodiment)
    windows = Windows(demonstrations.store, 4)
    ours = policy.model.processor.batch([windows[i] for i in (3, 4, 10, 11)])
    plan = TrainConfig(steps=1, batch_size=4, precision="fp32", augment=0.0)
    state = TrainState(policy.model, plan, tmp_path, ("robot",), DistributedContext(torch.device("cpu")), Progress())
    torch.manual_seed(plan.seed * 1_000_003 * 65_537)
    loss, means = policy.forward(batch_of(data, 4))
    loss.backward()
    theirs = {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}
    policy.model.zero_grad()
    totals = backward(state, [ours])
    assert list(means.values()) == pytest.approx([totals["robot"].losses / totals["robot"].elements], rel=1e-5)
    assert loss.item() == pytest.approx(next(iter(means.values())), rel=1e-5)
    grads = {name: p.grad for name, p in policy.model.named_parameters() if p.grad is not None}
    assert theirs.keys() == grads.keys()
    for name, gradient in grads.items():
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-4, atol=1e-6)
    rows, _ = policy.forward(batch_of(data, 4), reduction="none")
    if head == "parallel":  # a flow draws its noise
        assert rows.shape == (4,) and rows.mean().item() == pytest.approx(loss.item(), rel=1e-5)


def test_the_model_is_that_of_vla_train(plugin: ModuleType, data: Path, backbone: Path) -> None:
    """Its ranges are those of all rows, with actions relative to the state; its chunks those of the head's default."""
    from lerobot_policy_vla import VlaConfig

    config = VlaConfig(backbone=str(backbone), device="cpu", predict="unchanged", normalization="min-max")
    assert config.action_delta_indices == list(range(18))
    assert VlaConfig(head={"kind": "flow"}, device="cpu").action_delta_indices == list(range(30))
    spec = plugin.VlaPolicy(config, dataset_meta=metadata(data)).model.processor.robot()
    stored = metadata(data).stats
    for kind, ours in (("observation.state", spec.state), ("action", spec.action)):
        np.testing.assert_allclose([ours.low, ours.high], [stored[kind]["min"], stored[kind]["max"]], rtol=1e-6)
    assert (spec.horizon, spec.embodiment.control_hz, spec.relative) == (18, 10.0, (False, False))
    default = plugin.VlaPolicy(VlaConfig(backbone=str(backbone), device="cpu"), dataset_meta=metadata(data))
    assert default.model.processor.robot().relative == (True, True) and default.model.processor.robot().start
    assert default.config.input_features.keys() == {"observation.state", "observation.images.front"}
    with pytest.raises(InputError, match="no head blind"):
        plugin.VlaPolicy(VlaConfig(backbone=str(backbone), head="blind", device="cpu"), dataset_meta=metadata(data))


def test_the_loss_falls_and_a_checkpoint_resumes_exactly(
    lerobot_train: Callable[..., list[float]], data: Path, backbone: Path, tmp_path: Path
) -> None:
    chosen = {"steps": 9, "save_freq": 3, "policy.backbone": backbone, "policy.optimizer_lr": 0.01}
    chosen |= {"policy.scheduler_warmup_steps": 2, "batch_size": 6, "policy.n_action_steps": 2}
    losses = lerobot_train(*options(data, tmp_path / "run", **chosen))
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:2])
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "run", again, symlinks=True)
    for step in ("000006", "000009"):
        shutil.rmtree(again / "checkpoints" / step)
    before = again / "checkpoints/000003/pretrained_model"
    # As where it was killed while it saved.
    (again / "checkpoints/000009/pretrained_model").mkdir(parents=True)
    (again / "checkpoints/000009/pretrained_model/config.json").touch()
    resumed = lerobot_train(f"--config_path={before / 'train_config.json'}", "--resume=true", f"--output_dir={again}")
    assert resumed == losses[3:]
    weights = [
        load_file(path / "checkpoints/000009/pretrained_model/model.safetensors") for path in (tmp_path / "run", again)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(one, weights[1][name]) for name, one in weights[0].items())
    from lerobot.configs.policies import PreTrainedConfig

    assert PreTrainedConfig.from_pretrained(before).n_action_steps == 2


def test_a_checkpoint_continues_on_a_dataset(
    lerobot_train: Callable[..., list[float]], data: Path, backbone: Path, tmp_path: Path
) -> None:
    """With its ranges and its horizon; one of an earlier version says how."""
    lerobot_train(*options(data, tmp_path / "run", steps=1, **{"policy.backbone": backbone}))
    first = tmp_path / "run/checkpoints/last/pretrained_model"
    rest = [one for one in options(data, tmp_path / "more", steps=1) if "type" not in one and "horizon" not in one]
    lerobot_train(f"--policy.path={first}", *rest)
    one, other = (
        VLA.load(run / "checkpoints/000001/pretrained_model") for run in (tmp_path / "run", tmp_path / "more")
    )
    assert one.processor.robot() == other.processor.robot() and other.processor.robot().horizon == 4
    (first / "policy_preprocessor.json").write_text("{}")
    old = [*(one for one in rest if "output_dir" not in one), f"--output_dir={tmp_path / 'old'}"]
    with pytest.raises(InputError, match="earlier version: set --policy.type=vla --policy.backbone="):
        lerobot_train(f"--policy.path={first}", *old)


def test_a_streamed_dataset_has_the_ranges_of_its_statistics(
    plugin: ModuleType, data: Path, backbone: Path, tmp_path: Path
) -> None:
    """Quantiles where LeRobot stored them, else the extremes."""
    from lerobot_policy_vla import VlaConfig

    shutil.copytree(data / "meta", tmp_path / "streamed/meta")
    meta = metadata(tmp_path / "streamed")
    config = VlaConfig(backbone=str(backbone), actions="absolute", predict="unchanged", horizon=4, device="cpu")
    spec = plugin.VlaPolicy(config, dataset_meta=meta).model.processor.robot()
    np.testing.assert_allclose(spec.state.low, meta.stats["observation.state"]["q01"])
    np.testing.assert_allclose(spec.action.high, meta.stats["action"]["q99"])
    assert spec.embodiment.action_mode == ("absolute",) * 2 and spec.embodiment.name == "arm"
    for statistics in meta.stats.values():
        for name in [name for name in statistics if name.startswith("q")]:
            del statistics[name]
    spec = plugin.VlaPolicy(config, dataset_meta=meta).model.processor.robot()
    np.testing.assert_allclose(spec.action.high, meta.stats["action"]["max"])
    with pytest.raises(InputError, match="does not show its action mode.*--policy.actions=absolute"):
        plugin.VlaPolicy(VlaConfig(backbone=str(backbone), horizon=4, device="cpu"), dataset_meta=meta)
    config.head = "fast"
    with pytest.raises(InputError, match="cannot train a FAST tokenizer"):
        plugin.VlaPolicy(config, dataset_meta=meta)


def test_training_mode_has_action_prefixes(plugin: ModuleType, data: Path, backbone: Path) -> None:
    """Of the lengths that an inference delay has, from numpy's generator; held-out rows have none."""
    from lerobot_policy_vla import VlaConfig
    from lerobot_policy_vla.loss import with_prefixes

    config = VlaConfig(backbone=str(backbone), horizon=4, delay=0.2, device="cpu")
    policy = plugin.VlaPolicy(config, dataset_meta=metadata(data))
    observed: list[list[int]] = []
    make = policy.model.processor.batch
    policy.model.processor.batch = lambda rows, rngs: (
        observed.append([r.prefix_length for r in rows]) or make(rows, rngs)
    )
    for _ in range(8):
        policy.train().forward(batch_of(data, 4))
    assert {length for lengths in observed for length in lengths} == {0, 1, 2}
    policy.eval().forward(batch_of(data, 4))
    assert observed[-1] == [0] * 4
    from lerobot_policy_vla.batches import examples_of

    rows = examples_of(batch_of(data, 4), ["front"], "arm", None)
    np.random.seed(3)
    first, _ = with_prefixes(rows, 2)
    np.random.seed(3)
    torch.rand(1)
    assert [r.prefix_length for r in with_prefixes(rows, 2)[0]] == [r.prefix_length for r in first]


def test_what_lerobot_cannot_train_is_named(plugin: ModuleType, data: Path, backbone: Path, tmp_path: Path) -> None:
    from lerobot_policy_vla import VlaConfig
    from lerobot_policy_vla.presets import VlaOptimizerConfig
    from lerobot_policy_vla.training import model_for_training

    with pytest.raises(InputError, match="units of a trained policy: set --policy.path"):
        plugin.VlaPolicy(VlaConfig(backbone=str(backbone), units="degrees", device="cpu"), dataset_meta=metadata(data))
    with pytest.raises(InputError, match="preset of --policy.type=vla"):
        VlaOptimizerConfig().build(iter(()))
    policy = plugin.VlaPolicy(VlaConfig(backbone=str(backbone), horizon=4, device="cpu"), dataset_meta=metadata(data))
    with pytest.raises(InputError, match="choose muon or adamw"):
        VlaOptimizerConfig(optimizer="sgd").build(policy.get_optim_params())
    model = policy.model
    robot = replace(model.processor.robot(), history=(2,))
    model.processor = model.processor.with_robots([robot], model.processor.head.settings, "numbers")
    policy.save_pretrained(tmp_path / "past")
    with pytest.raises(InputError, match="past frames.*vla train"):
        model_for_training(VlaConfig(horizon=4, device="cpu"), metadata(data), tmp_path / "past")


def test_a_policy_in_radians_continues_on_degrees(
    plugin: ModuleType, make_model: Callable[..., VLA], tmp_path: Path
) -> None:
    """Its rows are converted, its ranges are kept, and its checkpoint keeps the units."""
    from lerobot.configs.policies import PreTrainedConfig

    from lerobot_policy_vla import VlaConfig

    names = ("lift.pos", "turn.pos")
    root = dataset(tmp_path / "degrees", names, cameras=("front", "wrist"))
    radians = ("lift [rad]", "turn [rad]")
    body = Embodiment("toy", ("front", "wrist"), radians, radians, (-1.0, -1.0), (1.0, 1.0), 10.0)
    ends = Normalizer((-1.0, -1.0), (1.0, 1.0))
    spec, plain = RobotSpec(body, 4, ends, ends, "none"), make_model(robot=False)
    model = VLA(plain.backbone, plain.processor.with_robots([spec], {"kind": "parallel"}, "numbers"))
    plugin.VlaPolicy(VlaConfig(device="cpu"), model=model).save_pretrained(tmp_path / "policy")
    config = VlaConfig(units="degrees", device="cpu", pretrained_path=tmp_path / "policy")
    policy = plugin.VlaPolicy.from_pretrained(tmp_path / "policy", config=config, dataset_meta=metadata(root))
    batch, observed = batch_of(root, 4), []
    make = policy.model.processor.batch
    policy.model.processor.batch = lambda rows, rngs: observed.extend(rows) or make(rows, rngs)
    policy.forward(batch)
    np.testing.assert_allclose(observed[0].state, np.radians(batch["observation.state"][0].numpy()), rtol=1e-6)
    np.testing.assert_allclose(observed[2].target, np.radians(batch["action"][2].numpy()), rtol=1e-6)
    assert policy.model.processor.robot() == spec
    policy.save_pretrained(tmp_path / "further")
    assert PreTrainedConfig.from_pretrained(tmp_path / "further").units == "degrees"
    for wrong, message in (
        ({"robot": "arm", "names": ("lift.pos", "bend.pos")}, "bend.pos.*only units may differ"),
        ({"cameras": ("front",)}, "no camera wrist"),
    ):
        other = dataset(tmp_path / message[:5].strip(), **{"names": names, "cameras": ("front", "wrist"), **wrong})
        with pytest.raises(InputError, match=message):
            plugin.VlaPolicy.from_pretrained(tmp_path / "policy", config=config, dataset_meta=metadata(other))


def test_a_mistake_is_one_line(plugin: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """LeRobot's commands would print a traceback; other errors still do."""
    sys.excepthook(InputError, InputError("no such head"), None)
    assert capsys.readouterr().err == "error: no such head\n"
    sys.excepthook(KeyError, KeyError("x"), None)
    assert "KeyError" in capsys.readouterr().err


@pytest.mark.slow  # four commands of LeRobot
def test_what_lerobot_trains_runs_in_both_simulations(
    lerobot_site: Path, tmp_path: Path, backbone: Path, pick_demonstrations: str
) -> None:
    """On demonstrations of our simulation, in a dataset that has their names only."""
    from vla.datasets.episodes import EpisodeStore

    store = EpisodeStore.open(pick_demonstrations)
    root, body = tmp_path / "pick", store.embodiment
    _as_lerobot(store, root)
    arguments = options(root, tmp_path / "run", steps=2, **{"policy.backbone": backbone})
    assert "so101: cameras front, wrist" in command(lerobot_site, "lerobot-train", *arguments)
    checkpoint = tmp_path / "run/checkpoints/last/pretrained_model"
    VLA.load(checkpoint).processor.robot().embodiment.check(body)
    command(lerobot_site, "vla", "eval", f"policy={checkpoint}", "task=pick", "seeds=7:8", f"out={tmp_path / 'eval'}")
    assert len(json.loads((tmp_path / "eval/eval.json").read_text())["results"]) == 1
    command(
        lerobot_site,
        "lerobot-eval",
        f"--policy.path={checkpoint}",
        "--env.type=vla",
        "--eval.n_episodes=1",
        "--eval.batch_size=1",
        "--eval.use_async_envs=false",
        f"--output_dir={tmp_path / 'out'}",
    )
    done = run(lerobot_site, "lerobot-train", *options(root, tmp_path / "no", **{"policy.head": "blind"}))
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: there is no head blind")
    assert "UnknownHead" not in done.stderr  # which a traceback would name


def _as_lerobot(store: Any, root: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    body = store.embodiment
    features: dict[str, Any] = {
        "observation.state": {"dtype": "float32", "shape": (6,), "names": list(body.state)},
        "action": {"dtype": "float32", "shape": (6,), "names": list(body.action)},
    }
    for camera in body.cameras:
        shape = store[0].images[camera].shape[1:]
        features[f"observation.images.{camera}"] = {
            "dtype": "image",
            "shape": shape,
            "names": ["height", "width", "channels"],
        }
    written = LeRobotDataset.create("tests/arm", 10, features=features, root=root, robot_type="so101", use_videos=False)
    for index in range(len(store)):
        episode = store[index]
        for step in range(len(episode)):
            images = {f"observation.images.{c}": episode.images[c][step] for c in body.cameras}
            numbers = {"observation.state": episode.state[step], "action": episode.action[step]}
            frame = {name: values.astype(np.float32) for name, values in numbers.items()}
            written.add_frame({**frame, **images, "task": episode.instruction})
        written.save_episode()
    written.finalize()

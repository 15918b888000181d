"""Every test runs with shapes and types checked, seeded, and with warnings as errors (see pyproject.toml)."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before anything imports mujoco or matplotlib: no display is needed.
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("MPLBACKEND", "agg")
# A test never reaches for the network, nor for the home folder.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("HF_HOME", os.path.join(tempfile.gettempdir(), f"vla-tests-hf-{os.getuid()}"))

from jaxtyping import install_import_hook

import vla

# Modules that name array shapes check them, and their other annotations, at every call; an int passes for a float. mypy
# checks the types of all modules.
# Not what every tick of a control loop and every step of a simulation calls: a check takes longer there than the work,
# and an emulated arm beside the loop under test starves.
HOT = {"embodiment.py", "control", "envs", "kinematics", "robots"}
PACKAGE = Path(vla.__path__[0])
CHECKED = [
    ".".join(("vla", *path.relative_to(PACKAGE).with_suffix("").parts))
    for path in PACKAGE.rglob("*.py")
    if path.relative_to(PACKAGE).parts[0] not in HOT and "from jaxtyping import" in path.read_text()
]
install_import_hook(CHECKED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import hypothesis
import numpy as np
import pytest

# Processes that load a policy are copies of one that has imported what that takes, once for all tests.
multiprocessing.set_forkserver_preload(["vla.policies.vla"])

from vla.embodiment import Embodiment
from vla.types import Episode

if TYPE_CHECKING:
    from vla.datasets.episodes import EpisodeStore
    from vla.models.robot_spec import RobotSpec
    from vla.models.vla import VLA

hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


TOY = Embodiment(
    name="toy",
    cameras=("front", "wrist"),
    state=("lift [rad]", "turn [rad]"),
    action=("lift [rad]", "turn [rad]", "grip [rad]"),
    action_low=(-1.0, -1.0, 0.0),
    action_high=(1.0, 1.0, 1.0),
    control_hz=10.0,
)
CONVNEXT: dict[str, Any] = {
    "model_type": "convnext",
    "patch_size": 4,
    "num_stages": 2,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "out_features": ["stage2"],
}
"""A tiny vision encoder."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Global generators start equal in every test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def unhurried() -> Iterator[None]:
    """LeRobot's AV1 encoder, as root, leaves its caller before all other processes: the arms of later tests starve."""
    yield
    if sys.platform == "linux" and os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.fixture(scope="session")
def make_episode() -> Callable[..., Episode]:
    return toy_episode


def toy_episode(seed: int = 0, steps: int = 5, horizon: int | None = None, **fields: Any) -> Episode:
    """A random one of a small robot: two cameras of 8 x 10 pixels, two state and three action components."""
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {
        "images": {name: rng.integers(0, 256, (steps, 8, 10, 3), np.uint8) for name in TOY.cameras},
        "state": rng.normal(size=(steps, 2)),
        "action": rng.normal(size=(steps, 3)),
        "time": 7.0 + np.arange(steps) / TOY.control_hz,
        "instruction": "lift the ring",
        "embodiment": TOY,
        "success": bool(seed % 2),
        "info": {"seed": seed},
        "points": None,
        "chunks": None if horizon is None else rng.normal(size=(steps, horizon, 3)),
    }
    return Episode(**(values | fields))


def toy_spec(points: int = 0) -> RobotSpec:
    """How a model controls the robot of `toy_episode`: 4 actions a chunk."""
    from vla.models.normalization import Normalizer
    from vla.models.robot_spec import RobotSpec

    state = Normalizer((-2.0, -2.5), (2.0, 1.5))
    return RobotSpec(TOY, 4, state, Normalizer((-2.0, -2.0, 0.0), (2.0, 2.0, 1.0)), "none", points=points)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: threads that share their cores with another process wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pick_demonstrations(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of three demonstrations of the task pick."""
    from vla.commands.record import demonstrate
    from vla.datasets.episodes import EpisodeStore
    from vla.envs.make import make_env

    path, env = tmp_path_factory.mktemp("pick") / "demonstrations.zarr", make_env("pick")
    with EpisodeStore.create(path, env.unwrapped.embodiment) as store:  # type: ignore[attr-defined]
        for seed in range(3):
            store.append(demonstrate(env, "pick", seed, 0.0))
    env.close()
    return str(path)


def write_store(path: Path | str, episodes: Sequence[Episode], codec: str = "zstd", **options: Any) -> EpisodeStore:
    """Writes a new store with the episodes, and opens it."""
    from vla.datasets.episodes import EpisodeStore

    with EpisodeStore.create(path, episodes[0].embodiment, codec, **options) as store:
        for episode in episodes:
            store.append(episode)
    return EpisodeStore.open(path)


@pytest.fixture(scope="session")
def lerobot_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our LeRobot plug-in, as an installer leaves it, and a robot without hardware."""
    from lerobot_plugin import install

    return install(tmp_path_factory.mktemp("plugin"))


@pytest.fixture
def plugin(lerobot_site: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The plug-in's module with the policy."""
    monkeypatch.syspath_prepend(str(lerobot_site))
    import lerobot_policy_vla.modeling_vla as modeling
    import lerobot_policy_vla.processor_vla  # noqa: F401

    return modeling


@pytest.fixture(scope="session")
def make_model() -> Callable[..., VLA]:
    return tiny_model


def tiny_model(
    robot: bool = True, seed: int = 0, smoothing: float = 1.0, points: int = 0, head: str = "parallel", **options: Any
) -> VLA:
    """A model of 32x32 images and two layers, for the robot of `make_episode` with 4 actions a chunk."""
    import torch

    from vla.models.backbones.composed import ComposedVLM
    from vla.models.backbones.nano import train_tokenizer
    from vla.models.processor import Processor
    from vla.models.special_tokens import IMAGE
    from vla.models.vla import VLA

    tokenizer = train_tokenizer(["what color is the cube? red blue", "lift the ring", "where is it? 12 34"])
    vision = {**CONVNEXT, "layer_scale_init_value": 1.0}
    language = {
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,  # large, so that attention looks somewhere and positions matter
    }
    torch.manual_seed(seed)
    backbone = ComposedVLM(vision, language, 32, tokenizer.token_to_id(IMAGE), attention="eager")
    robots, settings = (toy_spec(points),) if robot else (), {"kind": head} | options
    processor = Processor(tokenizer, 32, backbone.tokens_per_image, robots, head=settings)
    return VLA(backbone, processor, smoothing).eval()

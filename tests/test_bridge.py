"""A real arm's data: a sample of BridgeData V2, where it is at hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vla.datasets.episodes import EpisodeStore
from vla.datasets.formats import rlds

BRIDGE = Path(__file__).resolve().parents[2] / "shared/data/bridge"
needs_bridge = pytest.mark.skipif(not BRIDGE.is_dir(), reason="the BridgeData sample is not here")


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EpisodeStore]:
    """The whole sample as a store."""
    source = rlds.open_source(BRIDGE)
    with EpisodeStore.create(tmp_path_factory.mktemp("bridge") / "store", source.embodiment) as store:
        for index in range(len(source)):
            store.append(source[index])
    yield EpisodeStore.open(store.path)


@needs_bridge
def test_bridge_is_converted(bridge: EpisodeStore) -> None:
    source = rlds.open_source(BRIDGE)
    assert (len(bridge), bridge.total_frames, bridge.embodiment.control_hz) == (25, 250, 5.0)
    assert bridge.embodiment.cameras == ("image_0", "image_1", "image_2", "image_3")
    assert "put carrot on plate" in bridge.summary.instructions
    for index in (0, 24):
        one, other = source[index], bridge[index]
        np.testing.assert_array_equal(one.state, other.state)
        np.testing.assert_array_equal(one.action, other.action)
        for camera in one.images:
            np.testing.assert_array_equal(one.images[camera], other.images[camera])
        np.testing.assert_array_equal(one.extras["language_embedding"], other.extras["language_embedding"])
        assert one.info == other.info
    # A gripper goes from closed, 0, to open, 1; the arm moves by centimetres a step.
    assert bridge.embodiment.action_low[6] == 0
    assert bridge.embodiment.action_high[6] == 1
    assert np.abs(bridge.action[:][:, :3]).max() < 0.05


@needs_bridge
def test_a_policy_is_trained_some_steps_on_bridge(bridge: EpisodeStore, tmp_path: Path) -> None:
    from test_run import options

    from vla.training.run import train
    from vla.training.run_options import RunOptions

    plan = {"steps": 2, "batch_size": 2, "warmup": 1, "precision": "fp32", "evaluate_every": 2}
    fields = options(str(bridge.path), tmp_path / "run", backbone="nano", horizon=2, plan=plan)
    outcome = train(RunOptions(**fields))
    assert outcome.finished
    assert 0 < outcome.evaluations[-1]["action_error"] < 1

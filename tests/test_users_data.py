"""Data as users bring it: images, names, tasks and actions in every form that is told by what is in the files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import test_lerobot_names
import test_lerobot_v21
import test_rlds
import zarr
from PIL import Image
from scipy.spatial.transform import Rotation as Spatial
from test_action_inference import POSE, body_of, episodes, smooth

from vla.commands import cli
from vla.commands.demo import Progress
from vla.commands.push import push
from vla.common.plural import counted
from vla.datasets.action_inference import infer_actions
from vla.datasets.episodes import EpisodeStore
from vla.datasets.formats import diffusion_policy, hdf5, lerobot_v3, lerobot_v21, rlds
from vla.datasets.formats.lerobot_features import names_of
from vla.errors import InputError
from vla.types import Episode

STEPS = 6
COLOR = np.random.default_rng(0).integers(0, 256, (STEPS, 12, 10, 3), np.uint8)
GREY = np.repeat(COLOR[..., :1], 3, axis=3)
ALPHA = np.concatenate([COLOR, COLOR[..., :1]], axis=3)
FORMS: dict[str, tuple[np.ndarray, np.ndarray | None]] = {
    "channels first": (COLOR.transpose(0, 3, 1, 2), COLOR),
    "floats up to 1": ((COLOR / 255).astype(np.float32), COLOR),
    "floats up to 255": (COLOR.astype(np.float32), COLOR),
    "floats, channels first": ((COLOR / 255).transpose(0, 3, 1, 2), COLOR),
    "transparent": (ALPHA, COLOR),
    "transparent, channels first": (ALPHA.transpose(0, 3, 1, 2), COLOR),
    "grey": (COLOR[..., 0], GREY),
    "grey of one channel": (COLOR[..., :1], GREY),
    "grey, channels first": (COLOR[..., 0][:, None], GREY),
    "a mask": (COLOR[..., 0] // 64, None),
    "normals": (COLOR / 255 - 0.5, None),
    "16 bits": (COLOR[..., 0].astype(np.uint16), None),
    "tiny": (COLOR[:, :4, :4, 0], None),
}
"""Rows of an array, and the frames that they are; None where they are none."""


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def path_of(steps: int = STEPS, width: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """States, and actions that are where the state then is."""
    state = smooth(np.random.default_rng(1), steps, width)
    return state, np.concatenate([state[1:], state[-1:]])


@pytest.mark.parametrize("form", FORMS)
def test_images_are_read_in_every_form(tmp_path: Path, form: str) -> None:
    rows, expected = FORMS[form]
    state, action = path_of()
    arrays = {"action": action, "state": state, "front": rows}
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for name, place in (
            ("action", "action"),
            ("state", "observations/qpos"),
            ("front", "observations/images/front"),
        ):
            file[place] = arrays[name]
    sources: list[Any] = [hdf5.open_source(tmp_path / "a.hdf5")]
    for version in (2, 3):
        root = zarr.create_group(tmp_path / f"{version}.zarr", zarr_format=version)
        for name, values in arrays.items():
            root.create_array(f"data/{name}", data=values)
        root.create_array("meta/episode_ends", data=np.array([STEPS]))
        assert diffusion_policy.detect(tmp_path / f"{version}.zarr")
        sources.append(diffusion_policy.open_source(tmp_path / f"{version}.zarr", fps=10.0))
    for source in sources:
        episode = source[0]
        if expected is None:
            assert not episode.images
            np.testing.assert_array_equal(episode.extras["front"], rows)
        else:
            np.testing.assert_array_equal(episode.images["front"], expected)
            assert "front is read as images" in str(source.provenance["remarks"]) and not episode.extras


@pytest.mark.parametrize(("channels", "expected"), [(1, GREY), (3, COLOR), (4, COLOR)])
def test_rlds_images_of_any_channels_are_cameras(tmp_path: Path, channels: int, expected: np.ndarray) -> None:
    pixels = ALPHA[..., 0] if channels == 1 else ALPHA[..., :channels]
    step = {"action": test_rlds.tensor("float32", 2), "observation/state": test_rlds.tensor("float32", 2)}
    step["observation/image"] = test_rlds.image("uint8", 12, 10, channels)
    record = {
        **dict(zip(("steps/observation/state", "steps/action"), map(np.float32, path_of()), strict=True)),
        "steps/observation/image": [png(frame) for frame in pixels],
        "episode_metadata/file": [b"a"],
        "episode_metadata/number": np.array([0]),
    }
    source = rlds.open_source(test_rlds.write(tmp_path / "rlds", [[record]], step))
    np.testing.assert_array_equal(source[0].images["image"], expected)
    forms = {1: "grey", 4: "color, its transparency dropped"}
    assert source.provenance["remarks"] == (
        [f"image is read as images ({forms[channels]})"] if channels in forms else []
    )


def test_rows_of_png_bytes_without_a_type(tmp_path: Path) -> None:
    state, action = path_of()
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["observations/images/front"] = np.array([np.void(png(frame).ljust(2000, b"\0")) for frame in COLOR])
        file["observations/qpos"], file["action"] = state, action
        file.attrs["language_instruction"] = np.array([b"fold the towel"])
    episode = hdf5.open_source(tmp_path / "a.hdf5")[0]
    np.testing.assert_array_equal(episode.images["front"], COLOR)
    assert episode.instruction == "fold the towel"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"a": 2, "b": 1, "c": 0, "d": 3}, "c b a d"),
        ({"axes": {"a": 0, "b": 1, "c": 3, "d": 2}}, "a b d c"),
        ([["a", "b", "c", "d"]], "a b c d"),
        ({"left": ["a", "b"], "right": ["a", "b"]}, "left.a left.b right.a right.b"),
        ({"left": ["a", "b"], "right": ["c", "d"]}, "a b c d"),
        (["a", "a", "b", "b"], "a[0] a[1] b[2] b[3]"),
        (["a", "b"], "action[0] action[1] action[2] action[3]"),
        (None, "action[0] action[1] action[2] action[3]"),
    ],
)
def test_the_names_of_components(names: Any, expected: str) -> None:
    features = {"action": {"dtype": "float32", "shape": [4], "names": names}}
    assert names_of(["action"], features, {}) == tuple(expected.split())


VECTOR = {"dtype": "float32", "shape": [2], "names": ["a", "b"]}


def lerobot(root: Path) -> Path:
    """A LeRobotDataset v2.1 of two components."""
    return test_lerobot_names.write_v21(root, {"observation.state": VECTOR, "action": VECTOR})


def test_an_episode_without_steps_is_named_and_can_be_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = lerobot(tmp_path / "set")
    listed = root / "meta/episodes.jsonl"
    count = len(listed.read_text().splitlines())
    empty = {"episode_index": count, "tasks": [], "length": 0}
    listed.write_text(f"{listed.read_text()}\n{json.dumps(empty)}")
    command = ["convert", str(root), str(tmp_path / "out.zarr"), "actions=absolute"]
    assert cli.main(command) == 2
    assert f"episode {count} of {root} cannot be read: it has no steps" in capsys.readouterr().err
    assert not (tmp_path / "out.zarr").exists()
    assert cli.main([*command, "skip=true"]) == 0
    assert len(EpisodeStore.open(tmp_path / "out.zarr")) == count
    ends = zarr.create_group(tmp_path / "buffer.zarr", zarr_format=2)
    for name, values in zip(("state", "action"), path_of(8), strict=True):
        ends.create_array(f"data/{name}", data=values)
    ends.create_array("meta/episode_ends", data=np.array([4, 4, 8]))
    assert diffusion_policy.open_source(tmp_path / "buffer.zarr", fps=5.0).faults() == {1: "it has no steps"}


def test_a_task_of_nothing_is_no_words_and_an_instruction_gives_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = lerobot(tmp_path / "set")
    (root / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": null}\n')
    assert lerobot_v21.open_source(root)[0].instruction == ""
    assert lerobot_v21.open_source(root, instruction="lift it")[0].instruction == "lift it"
    assert cli.main(["convert", str(root), str(tmp_path / "out.zarr"), "actions=absolute"]) == 0
    count = len(EpisodeStore.open(tmp_path / "out.zarr"))
    assert f"{count} of {count} episodes have no instruction" in capsys.readouterr().out
    assert cli.main(["convert", str(tmp_path / "out.zarr"), str(tmp_path / "again.zarr")]) == 0
    assert "actions are absolute: a, b (as stated: " in capsys.readouterr().out


def test_the_first_version_of_lerobot_is_named(tmp_path: Path) -> None:
    root = lerobot(tmp_path / "set")
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps({**info, "codebase_version": "v1.6"}))
    with pytest.raises(InputError, match=r"LeRobotDataset v1\.6: .*convert_dataset_v1_to_v2"):
        lerobot_v3.detect(root)


@pytest.mark.parametrize(
    ("jitter", "by_time"), [([0, 0.02, -0.02, 0, 0, 0], True), ([0, 0.06, -0.06, 0, 0, 0], False), ([99.93] * 6, False)]
)
def test_frames_are_the_rows_in_their_order_where_timestamps_are_those_of_none(
    tmp_path: Path, jitter: list[float], by_time: bool
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = test_lerobot_v21.write_v21(tmp_path / "set", {"ego": range(3)})
    regular = lerobot_v21.open_source(root)[0].images["ego"]
    file = root / "data/chunk-000/episode_000000.parquet"
    table = pq.read_table(file)
    times = np.asarray(table["timestamp"]) + np.array(jitter)
    pq.write_table(
        table.set_column(table.column_names.index("timestamp"), "timestamp", pa.array(times, pa.float32())), file
    )
    source = lerobot_v21.open_source(root)
    found = source[0]
    np.testing.assert_array_equal(found.images["ego"], regular)
    np.testing.assert_allclose(found.time, times, rtol=1e-6)
    said = [remark for remark in source.provenance["remarks"] if "timestamps of 1 episodes are not" in remark]
    assert len(said) == (not by_time)


def test_wild_values_do_not_hide_what_actions_are() -> None:
    for kind in ("absolute", "delta"):
        data = [(state, action.copy()) for state, action in episodes(kind, 0)]
        for _, action in data:
            action[7] = 30.0
        found, (line,) = infer_actions(body_of(("a", "b", "c")), data)
        assert found.action_mode == (kind,) * 3 and "except for 5 outliers" in line


def test_rows_that_stay_one_are_no_quaternion() -> None:
    still = np.tile([0.0, 0.0, 0.0, 1.0], (60, 1))
    switch = np.where(np.arange(60) < 30, -1.0, 1.0)
    data = [
        (np.column_stack([s, still, s[:, 0]]), np.column_stack([a, 0 * s, switch])) for s, a in episodes("velocity", 0)
    ]
    found, _ = infer_actions(body_of(POSE, tuple("abcdefgh")), data)
    assert found.action_mode == ("velocity",) * 6 + ("absolute",)


def test_a_rotation_is_measured_as_a_whole_or_not_at_all() -> None:
    rng, data = np.random.default_rng(0), []
    for _ in range(4):
        turn = Spatial.from_euler("z", 3.0) * Spatial.from_rotvec(smooth(rng, 60, 3))
        at, later = smooth(rng, 60, 3), np.r_[1:60, 59]
        data.append((np.column_stack([at, turn.as_quat()]), np.column_stack([at[later], turn[later].as_euler("xyz")])))
    found, _ = infer_actions(body_of(POSE[:6], ("x", "y", "z", "qx", "qy", "qz", "qw")), data)
    assert found.action_mode == ("absolute",) * 6
    assert found.action_state == ("x", "y", "z", None, None, None)


def test_why_no_episode_can_be_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow.parquet as pq

    root = lerobot(tmp_path / "set")
    for file in root.rglob("*.parquet"):
        table = pq.read_table(file)
        rows = [None, *table["action"].to_pylist()[1:]]
        pq.write_table(table.set_column(table.column_names.index("action"), "action", [rows]), file)
    assert cli.main(["convert", str(root), str(tmp_path / "out.zarr"), "actions=absolute"]) == 2
    assert "episode 0 cannot be read: action: a column holds" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.json", "processor.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}"])
def test_push_names_a_damaged_file(tmp_path: Path, name: str, content: bytes) -> None:
    for file in ("config.json", "model.safetensors", "processor.json", "tokenizer.json"):
        (tmp_path / file).write_bytes(
            b'{"backbone": {}, "image_size": 8}' if file != "model.safetensors" else b"\2" + b"\0" * 7 + b"{}"
        )
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} is damaged .*: copy the checkpoint again"):
        push(policy=str(tmp_path), repo="user/name", license="mit", private=True, dry_run=True)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"settings": {}}', '{"settings": {}, "phases": {"train": 3}}'])
def test_a_demo_names_a_damaged_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "progress.json").write_text(content)
    with pytest.raises(InputError, match=r"progress\.json is damaged .*: remove the folder"):
        Progress(tmp_path, {})


@pytest.mark.parametrize("bad", [0, 1])
def test_a_pixel_that_is_not_finite_is_named_and_can_be_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: int
) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for index in range(2):
            state, action = path_of()
            pixels = (COLOR / 255).astype(np.float32)
            pixels[3, 2, 1, 0] = np.nan if index == bad else 0
            demo = file.create_group(f"data/demo_{index}")
            demo["obs/state"], demo["obs/front"], demo["actions"] = state, pixels, action
    command = ["convert", str(tmp_path / "a.hdf5"), str(tmp_path / "out.zarr"), "fps=10", "actions=absolute"]
    assert cli.main(command) == 2
    assert f"episode {bad} of" in (error := capsys.readouterr().err)
    assert "obs/front at step 3 has pixels that are not finite" in error
    assert cli.main([*command, "skip=true"]) == 0
    (episode,) = EpisodeStore.open(tmp_path / "out.zarr")
    expected = COLOR.copy()
    expected[3, 2, 1, 0] = 0
    np.testing.assert_array_equal(episode.images["front"], expected)


def test_lengths_that_are_out_of_date_are_those_of_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = lerobot(tmp_path / "set")
    listed = root / "meta/episodes.jsonl"
    rows = [json.loads(line) for line in listed.read_text().splitlines()]
    whole = [len(episode.action) for episode in map(lerobot_v21.open_source(root).__getitem__, range(len(rows)))]
    listed.write_text("\n".join(json.dumps({**row, "length": row["length"] - 1}) for row in rows[:1]))
    assert cli.main(["convert", str(root), str(tmp_path / "out.zarr"), "actions=absolute"]) == 0
    printed = capsys.readouterr().out
    assert f"stale for 1 of 1 episodes: all rows of their files are read (episode 0: {whole[0]}, not" in printed
    assert f"does not list: {counted(len(rows) - 1, 'file')}, episode_000001.parquet first" in printed
    assert [len(episode) for episode in EpisodeStore.open(tmp_path / "out.zarr")] == whole[:1]
    # Longer than the rows: they are all there where meta/info.json says so, else some are lost.
    listed.write_text("\n".join(json.dumps({**row, "length": row["length"] + 1}) for row in rows))
    info = json.loads((root / "meta/info.json").read_text())
    for total, expected in ((sum(whole), {}), (sum(whole) + 1, set(range(len(rows))))):
        (root / "meta/info.json").write_text(json.dumps({**info, "total_frames": total}))
        assert lerobot_v21.open_source(root).faults().keys() == set(expected)


@pytest.mark.parametrize(("dtype", "is_time"), [(np.float32, False), (np.float64, True)])
def test_seconds_since_1970_are_times_where_the_numbers_are_fine_enough(
    tmp_path: Path, dtype: Any, is_time: bool
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = test_lerobot_v21.write_v21(tmp_path / "set", {"ego": range(3)})
    frames = lerobot_v21.open_source(root)[0].images["ego"]
    times = 1.7e9 + np.arange(6) / 10
    for file in root.rglob("*.parquet"):
        table = pq.read_table(file)
        place = table.column_names.index("timestamp")
        pq.write_table(table.set_column(place, "timestamp", pa.array(times.astype(dtype))), file)
    source = lerobot_v21.open_source(root)
    episode, remarks = source[0], source.provenance["remarks"]
    np.testing.assert_array_equal(episode.images["ego"], frames)
    np.testing.assert_allclose(episode.time, times if is_time else times - 1.7e9, atol=1e-6)
    said = "the timestamps of 3 episodes are unusable: their steps are spaced evenly at 10 Hz"
    assert (said in remarks) is not is_time and len(remarks) == 1


def test_a_day_on_which_a_joint_came_round_merges_with_one_on_which_it_did_not(
    tmp_path: Path, make_episode: Callable[..., Episode]
) -> None:
    plain = make_episode().embodiment
    turning = replace(plain, action_turn=(0.0, 6.283, 0.0))
    days = {"first.zarr": plain, "second.zarr": turning}
    for name, robot in days.items():
        with EpisodeStore.create(tmp_path / name, robot) as store:
            store.append(make_episode(embodiment=robot))
    for order in (list(days), list(reversed(days))):
        out = tmp_path / f"{order[0]} first"
        assert cli.main(["data", "merge", *(str(tmp_path / name) for name in order), f"out={out}"]) == 0
        with EpisodeStore.open(out) as merged:
            assert len(merged) == 2 and merged.embodiment.action_turn == turning.action_turn

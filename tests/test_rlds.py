from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vla.datasets.episodes import EpisodeStore
from vla.datasets.formats import rlds
from vla.datasets.formats.tfrecord import parse_example, read_record, records
from vla.errors import InputError
from vla.types import Span

Value = Sequence[bytes] | np.ndarray


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def serialize(features: Mapping[str, Value], packed: bool = True) -> bytes:
    """A `tf.train.Example`."""
    entries = b""
    for name, values in features.items():
        if isinstance(values, np.ndarray) and values.dtype.kind == "f":
            numbers = [struct.pack("<f", value) for value in values.ravel().tolist()]
            kind, tag = 2, b"\x0d"
        elif isinstance(values, np.ndarray):
            numbers = [varint(int(value)) for value in values.ravel().tolist()]
            kind, tag = 3, b"\x08"
        else:
            kind, numbers = 1, []
        if kind == 1:
            listed = b"".join(message(1, bytes(value)) for value in values)
        else:
            listed = message(1, b"".join(numbers)) if packed else b"".join(tag + number for number in numbers)
        entries += message(1, message(1, name.encode()) + message(2, message(kind, listed)))
    return message(1, entries)


def frame(payload: bytes) -> bytes:
    """A TFRecord."""

    def masked(data: bytes) -> bytes:
        crc = crc32c.crc32c(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(payload))
    return length + masked(length) + payload + masked(payload)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def tensor(dtype: str, *shape: int, encoding: str = "none") -> dict[str, Any]:
    return {"tensor": {"shape": {"dimensions": [str(n) for n in shape]}, "dtype": dtype, "encoding": encoding}}


def image(dtype: str, *shape: int) -> dict[str, Any]:
    return {"image": {"shape": {"dimensions": [str(n) for n in shape]}, "dtype": dtype, "encodingFormat": "png"}}


def tree(features: Mapping[str, Any]) -> dict[str, Any]:
    """A features dict; names with slashes nest."""
    children = {name: node for name, node in features.items() if "/" not in name}
    for first in {name.partition("/")[0] for name in features if "/" in name}:
        inside = {n.removeprefix(f"{first}/"): node for n, node in features.items() if n.startswith(f"{first}/")}
        children[first] = tree(inside)
    return {"featuresDict": {"features": children}}


TEXT: dict[str, Any] = {"text": {}}
STEP: dict[str, Any] = {
    "action/world_vector": tensor("float32", 3),
    "action/rotation_delta": tensor("float32", 3),
    "action/gripper_closedness_action": tensor("float32", 1),
    "action/base": tensor("float32", 2),
    "action/terminate_episode": tensor("int32", 3),
    "observation/image": image("uint8", 6, 8, 3),
    "observation/depth": image("uint16", 6, 8, 1),
    "observation/gripper": tensor("float32"),
    "observation/pose": tensor("float64", 2),
    "observation/step": tensor("int32"),
    "observation/natural_language_instruction": TEXT,
    "observation/natural_language_embedding": tensor("float32", 4),
    "observation/tactile": tensor("uint8", 2, 3, encoding="zlib"),
    "natural_language_instruction_2": TEXT,
    "comment": TEXT,
    "points": tensor("float32", -1, 2),
    "is_last": tensor("bool"),
    "reward": tensor("float32"),
}
ONCE: dict[str, Any] = {"episode_metadata/file": TEXT, "episode_metadata/number": tensor("int32")}


def episode(seed: int, steps: int, words: Sequence[str] = ("pick it up",)) -> dict[str, Value]:
    """The features of a record of STEP and ONCE."""
    rng = np.random.default_rng(seed)

    def floats(*shape: int) -> np.ndarray:
        return rng.normal(size=(steps, *shape)).astype(np.float32)

    said = [words[min(i, len(words) - 1)].encode() for i in range(steps)]
    rows = {
        "action/world_vector": floats(3),
        "action/rotation_delta": floats(3),
        "action/gripper_closedness_action": floats(1),
        "action/base": floats(2),
        "action/terminate_episode": rng.integers(-1, 2, (steps, 3)),
        "observation/image": [png(rng.integers(0, 256, (6, 8, 3), np.uint8)) for _ in range(steps)],
        "observation/depth": [png(np.full((6, 8), 40000 + i, np.uint16)) for i in range(steps)],
        "observation/gripper": floats(),
        "observation/pose": floats(2),
        "observation/step": np.arange(steps),
        "observation/natural_language_instruction": said,
        "observation/natural_language_embedding": floats(4),
        "observation/tactile": [zlib.compress(bytes(range(6))) for _ in range(steps)],
        "natural_language_instruction_2": [b"lift it"] * steps,
        "comment": [b"fine"] * steps,
        "is_last": np.arange(steps) == steps - 1,
        "reward": (np.arange(steps) == steps - 1) * np.float32(seed % 2),
    }
    return {
        **{f"steps/{name}": values for name, values in rows.items()},
        "episode_metadata/file": [b"a.npy"],
        "episode_metadata/number": np.array([seed]),
    }


def write(
    folder: Path,
    shards: Sequence[Sequence[Mapping[str, Value]]],
    step: Mapping[str, Any] = STEP,
    name: str = "fractal20220817_data",
    stated: Sequence[int] | None = None,
) -> Path:
    """A data set as TensorFlow Datasets writes it, with one split."""
    folder.mkdir(parents=True)
    lengths = [str(n) for n in (stated or map(len, shards))]
    info = {
        "name": name,
        "version": "0.1.0",
        "splits": [{"name": "train", "shardLengths": lengths}],
        "redistributionInfo": {"license": "CC-BY-4.0"},
    }
    features = tree({**ONCE, "steps": {"sequence": {"feature": tree(step), "length": "-1"}}})
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text(json.dumps(features))
    for index, shard in enumerate(shards):
        path = folder / f"{name}-train.tfrecord-{index:05}-of-{len(shards):05}"
        path.write_bytes(b"".join(frame(serialize(features)) for features in shard))
    return folder


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.one_of(
            st.lists(st.binary(max_size=300), max_size=4),
            st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1).map(lambda v: np.array(v, np.int64)),
            st.lists(st.floats(width=32), min_size=1).map(lambda v: np.array(v, np.float32)),
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_an_example_is_read_as_it_was_written(features: dict[str, Value], packed: bool) -> None:
    found = parse_example(serialize(features, packed))
    assert found.keys() == features.keys()
    for name, values in features.items():
        if isinstance(values, np.ndarray):
            assert np.asarray(found[name]).tobytes() == values.tobytes()
        else:
            assert list(found[name]) == list(values)


@given(st.binary(max_size=60))
def test_any_bytes_are_an_example_or_a_value_error(data: bytes) -> None:
    try:
        parse_example(data)
    except ValueError:
        return


def test_only_the_features_asked_for_are_read() -> None:
    data = serialize({"a": np.ones(3, np.float32), "b": [b"x"]})
    assert parse_example(data, {"b"}) == {"b": [b"x"]}


def test_a_flipped_byte_anywhere_in_a_record_is_found(tmp_path: Path) -> None:
    whole = frame(serialize({"a": np.arange(3)})) + frame(serialize({"b": [b"second"]}))
    path = tmp_path / "x.tfrecord"
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(InputError, match="does not match its checksum"):
            for place, _ in records(path):
                read_record(path, place)


def test_a_record_that_is_cut_short_is_named(tmp_path: Path) -> None:
    whole = frame(serialize({"a": np.arange(3)}))
    path = tmp_path / "x.tfrecord"
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"x\.tfrecord is cut short: its record at byte 0"):
            list(records(path))
        with pytest.raises(InputError, match=r"x\.tfrecord is cut short: its record at byte 0"):
            read_record(path, 0)


def test_every_feature_has_its_place(tmp_path: Path) -> None:
    written = [episode(0, 3), episode(1, 4), episode(2, 2, ["reach", "grasp"])]
    folder = write(tmp_path / "fractal/0.1.0", [written[:2], written[2:]])
    assert rlds.detect(folder)
    assert rlds.detect(folder.parent)
    source = rlds.open_source(folder.parent)
    robot = source.embodiment
    assert (robot.name, robot.control_hz, robot.cameras) == ("fractal20220817_data", 3.0, ("image",))
    assert robot.state == ("gripper", "pose[0]", "pose[1]")
    order = ("world_vector", "rotation_delta", "gripper_closedness_action", "base", "terminate_episode")
    assert [name.split("[")[0] for name in robot.action] == [order[i] for i in (0, 0, 0, 1, 1, 1, 2, 3, 3, 4, 4, 4)]
    assert len(source) == 3
    actions = []
    for index, features in enumerate(written):
        found, steps = source[index], len(features["steps/reward"])
        actions.append(np.concatenate([np.reshape(features[f"steps/action/{name}"], (steps, -1)) for name in order], 1))
        np.testing.assert_array_equal(found.action, actions[-1])
        np.testing.assert_array_equal(found.state[:, 0], features["steps/observation/gripper"])
        first = Image.open(io.BytesIO(bytes(features["steps/observation/image"][0])))
        np.testing.assert_array_equal(found.images["image"][0], first)
        assert (found.depth["image"] == 40000 + np.arange(steps)[:, None, None]).all()
        assert found.extras.keys() == {"is_last", "natural_language_embedding", "reward", "step", "tactile"}
        assert found.extras["is_last"].dtype == bool
        np.testing.assert_array_equal(found.extras["tactile"][0], np.arange(6).reshape(2, 3))
        assert found.info == {"split": "train", "file": "a.npy", "number": index, "comment": "fine"}
        assert found.paraphrases == ("lift it",)
        assert found.success == (index == 1)
    assert robot.action_low == tuple(np.concatenate(actions).min(0).tolist())
    assert robot.action_high == tuple(np.concatenate(actions).max(0).tolist())
    assert (source[0].instruction, source[0].spans) == ("pick it up", ())
    assert source[2].spans == (Span(0, 1, "reach"), Span(1, 2, "grasp"))
    assert source.provenance["license"] == "CC-BY-4.0"
    assert source.provenance["left_out"] == {"points": "its rows are no numbers of one shape"}
    assert json.loads(json.dumps(source.provenance)) == source.provenance


def test_floats_of_an_image_and_letters_as_numbers(tmp_path: Path) -> None:
    step = {
        "action": tensor("float32", 2),
        "observation/rgb": tensor("uint8", 2, 2, 3),
        "observation/depth": image("float32", 2, 2, 1),
        "observation/effector": tensor("float32", 2),
        "observation/instruction": tensor("int32", 8),
    }
    metres = np.array([[0.5, 1.0], [np.nan, 100.0]], np.float32)
    rows = {
        "action": np.zeros((2, 2), np.float32),
        "observation/rgb": np.arange(24),
        "observation/depth": [png(metres.view(np.uint8).reshape(2, 2, 4))] * 2,
        "observation/effector": np.ones((2, 2), np.float32),
        "observation/instruction": np.frombuffer(b"push it\0" * 2, np.uint8),
    }
    features = {f"steps/{name}": values for name, values in rows.items()}
    source = rlds.open_source(write(tmp_path / "table", [[features]], step, "language_table"))
    found = source[0]
    assert (found.instruction, source.embodiment.control_hz, found.success) == ("push it", 10.0, None)
    np.testing.assert_array_equal(found.depth["rgb"][0], [[500, 1000], [0, 0]])
    np.testing.assert_array_equal(found.images["rgb"].ravel(), np.arange(24))
    without = {name: feature for name, feature in step.items() if name != "observation/effector"}
    with pytest.raises(InputError, match="no numbers that could be the state: it has action"):
        rlds.open_source(write(tmp_path / "blind", [[features]], without, "language_table"))


def test_state_action_and_instruction_can_be_chosen(tmp_path: Path) -> None:
    written = episode(0, 3)
    folder = write(tmp_path / "a", [[written]])
    options: dict[str, Any] = {"state": ["step", "observation/pose"], "action": ["base", "gripper"]}
    source = rlds.open_source(folder, instruction="go", **options)
    assert source.embodiment.state == ("step", "pose[0]", "pose[1]")
    assert source.embodiment.action == ("base[0]", "base[1]", "gripper")
    found = source[0]
    np.testing.assert_array_equal(found.state[:, 0], [0, 1, 2])
    np.testing.assert_array_equal(found.action[:, 2], written["steps/observation/gripper"])
    np.testing.assert_array_equal(found.extras["action.world_vector"], written["steps/action/world_vector"])
    assert (found.instruction, found.paraphrases) == ("go", ())
    with pytest.raises(InputError, match="has no 'image' for the state: it has .*gripper"):
        rlds.open_source(folder, state=["image"])


def test_cameras_can_be_chosen(tmp_path: Path) -> None:
    step = STEP | {"observation/wrist_image": image("uint8", 4, 5, 3)}
    written = episode(0, 3) | {"steps/observation/wrist_image": [png(np.full((4, 5, 3), 7, np.uint8))] * 3}
    folder = write(tmp_path / "a", [[written]], step)
    source = rlds.open_source(folder, cameras=["wrist_image"])
    found = source[0]
    assert source.embodiment.cameras == ("wrist_image",) and (found.images["wrist_image"] == 7).all()
    assert not {"image", "depth"} & found.extras.keys() and "depth" not in found.depth
    assert source.provenance["left_out"]["observation/image"] == "not among the chosen cameras"
    with pytest.raises(InputError, match="has no 'top' for the cameras: it has image, wrist_image"):
        rlds.open_source(folder, cameras=["top"])


def test_the_rate_is_known_or_asked_for(tmp_path: Path) -> None:
    folder = write(tmp_path / "lab", [[episode(0, 3)]], name="lab_data")
    with pytest.raises(InputError, match="lab_data in .* does not state its number of steps a second: give fps"):
        rlds.open_source(folder)
    with pytest.raises(InputError, match="above 0"):
        rlds.open_source(folder, fps=0.0)
    np.testing.assert_allclose(rlds.open_source(folder, fps=8.0)[0].time, [0, 0.125, 0.25])


def test_damage_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", [[episode(0, 3), episode(1, 3)]])
    path = next(folder.glob("*.tfrecord-*"))
    whole = path.read_bytes()
    source = rlds.open_source(folder)
    at = whole.rindex(b"IDAT")
    path.write_bytes(whole[:at] + b"\0" + whole[at + 1 :])
    assert len(source[0]) == 3
    with pytest.raises(InputError, match=r"record at byte \d+ does not match its checksum"):
        source[1]
    for content, fault in (
        (whole[: len(frame(serialize(episode(0, 3))))], "has 1 records, dataset_info.json states 2"),
        (whole[:-9], "is cut short"),
    ):
        path.write_bytes(content)
        source = rlds.open_source(folder)
        assert list(source.faults()) == [1] and fault in source.faults()[1] and path.name in source.faults()[1]
        assert (len(source), len(source[0])) == (2, 3)
        with pytest.raises(InputError, match=fault):
            source[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action/world_vector": np.zeros(10, np.float32)}, "world_vector has 10 numbers, expected t x 3"),
        ({"action/base": np.zeros(4, np.float32)}, "action/base has 4 numbers for 3 actions, expected 3 x 2"),
        ({"observation/gripper": np.zeros(2, np.float32)}, "gripper has 2 numbers for 3 actions"),
        ({"observation/image": [b"no image"] * 3}, "observation/image at step 0 cannot be decoded"),
        ({"observation/image": [png(np.zeros((6, 8, 3), np.uint8))]}, "observation/image has 1 rows for 3 actions"),
        ({"observation/tactile": [b"raw"] * 3}, "observation/tactile cannot be decoded"),
    ],
)
def test_a_feature_that_does_not_fit_is_named(tmp_path: Path, change: dict[str, Value], message: str) -> None:
    features = episode(0, 3) | {f"steps/{name}": values for name, values in change.items()}
    folder = write(tmp_path / "a", [[features]])
    with pytest.raises(InputError, match=message):
        rlds.open_source(folder)[0]


def test_what_is_no_rlds_is_refused(tmp_path: Path) -> None:
    assert not rlds.detect(tmp_path)
    with pytest.raises(InputError, match="is not an RLDS data set"):
        rlds.open_source(tmp_path)
    no_action = write(tmp_path / "a", [[episode(0, 3)]], {"reward": tensor("float32")})
    with pytest.raises(InputError, match=r"nothing that is known to be the action: .*'action=\[reward\]'"):
        rlds.open_source(no_action)
    no_files = write(tmp_path / "b", [])
    with pytest.raises(InputError, match="has no files with names like"):
        rlds.open_source(no_files)
    write(tmp_path / "c/1.0.0", [[episode(0, 3)]])
    write(tmp_path / "c/2.0.0", [[episode(0, 3)]])
    with pytest.raises(InputError, match=r"several versions, choose one: 1\.0\.0, 2\.0\.0"):
        rlds.open_source(tmp_path / "c")


def test_a_value_that_is_not_finite_is_left_for_the_store_to_name(tmp_path: Path) -> None:
    bad = episode(1, 3)
    np.asarray(bad["steps/action/base"])[1, 0] = np.inf
    source = rlds.open_source(write(tmp_path / "a", [[episode(0, 3), bad]]))
    assert np.isfinite(source.embodiment.action_high).all()
    with EpisodeStore.create(tmp_path / "store", source.embodiment) as store:
        store.append(source[0])
        with pytest.raises(InputError, match=r"action.*base\[0\]"):
            store.append(source[1])

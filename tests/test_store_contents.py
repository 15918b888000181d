"""What a store can hold beyond images, states and actions; how its images are coded; how its episodes change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import zarr
from conftest import write_store
from hypothesis import given
from hypothesis import strategies as st
from stores import Killed, assert_equal, cut_before

from vla.datasets.codecs import CODECS
from vla.datasets.episodes import EpisodeStore
from vla.datasets.formats.compare import check_equal
from vla.datasets.shards import FRAMES_PER_SHARD, ROWS_PER_SHARD
from vla.datasets.text_chunks import TextChunks
from vla.errors import InputError
from vla.types import Episode, Span

Make = Callable[..., Episode]


def rich(make_episode: Make, seed: int = 0, steps: int = 5) -> Episode:
    """An episode with everything that one can have."""
    rng = np.random.default_rng(seed)
    return make_episode(
        seed,
        steps=steps,
        horizon=4,
        points=rng.uniform(size=(steps, 2, 2)),
        paraphrases=("raise the ring", "pick the ring up"),
        spans=(Span(0, 2, "reach"), Span(1, steps, "lift")),
        depth={"wrist": rng.integers(0, 4000, (steps, 6, 4), np.uint16)},
        extras={
            "next.reward": rng.normal(size=steps).astype(np.float32),
            "force/left": rng.normal(size=(steps, 2, 3)),
            "contact": rng.integers(0, 2, steps).astype(bool),
            "clock": rng.integers(0, 2**60, (steps, 1)),
        },
    )


def smooth(make_episode: Make, steps: int = 3) -> Episode:
    """Images as a camera makes them, which lossy codecs are for."""
    y, x = np.mgrid[0:64, 0:48]
    wave = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11)], -1)
    images = (127 + 90 * np.stack([np.roll(wave, 5 * i, axis=1) for i in range(steps)])).astype(np.uint8)
    return make_episode(1, steps=steps, images={"front": images, "wrist": images[:, ::-1].copy()})


def test_everything_survives_in_any_order(tmp_path: Path, make_episode: Make) -> None:
    episodes = [make_episode(0), rich(make_episode, 1), make_episode(2), rich(make_episode, 3, steps=7)]
    write_store(tmp_path / "store", episodes, provenance={"from": "a test"})
    store = EpisodeStore.open(tmp_path / "store")
    assert store.provenance == {"from": "a test"}
    for stored, episode in zip(store, episodes, strict=True):
        assert_equal(stored, episode)
    np.testing.assert_array_equal(store.rows("extras/contact")[:5], False)
    assert np.isnan(store.rows("extras/force/left")[10:15]).all()
    assert not store.depth("wrist", [0, 4, 10]).any()
    with pytest.raises(InputError, match="no depth of 'front': it has wrist"):
        store.depth("front", [0])


def test_an_array_may_begin_shards_later(tmp_path: Path, make_episode: Make) -> None:
    plain, late = make_episode(0, steps=ROWS_PER_SHARD + FRAMES_PER_SHARD), rich(make_episode, 1)
    with EpisodeStore.create(tmp_path / "store", plain.embodiment) as store:
        for episode in (plain, late, plain, late):
            store.append(episode)
    store = EpisodeStore.open(tmp_path / "store")
    for stored, episode in zip(store, (plain, late, plain, late), strict=True):
        assert_equal(stored, episode)
    assert np.isnan(store.rows("points")[[0, ROWS_PER_SHARD, len(plain) - 1][1] : len(plain)]).all()
    group = zarr.open_group(tmp_path / "store", mode="r")
    for name in ("points", "depth/wrist", "extras/contact"):
        stored_rows = np.asarray(group[name][len(plain) : len(plain) + len(late)])  # type: ignore[index]
        expected = {"points": late.points, "depth/wrist": late.depth["wrist"], "extras/contact": late.extras["contact"]}
        np.testing.assert_array_equal(stored_rows, expected[name])


@pytest.mark.parametrize("count", [1, 64, 65, ROWS_PER_SHARD, ROWS_PER_SHARD + 70])
def test_rows_are_taken_as_from_an_array(tmp_path: Path, make_episode: Make, count: int) -> None:
    tiny = {name: np.zeros((count, 1, 1, 3), np.uint8) for name in make_episode().images}
    whole = make_episode(1, steps=count, images=tiny)
    with EpisodeStore.create(tmp_path / "store", whole.embodiment) as store:
        for part in (slice(0, count // 3), slice(count // 3, count)):
            if part.start < part.stop:
                fields = {name: getattr(whole, name)[part] for name in ("state", "action", "time")}
                store.append(replace(whole, images={k: v[part] for k, v in whole.images.items()}, **fields))

    @given(data=st.data())
    def compare(data: st.DataObject) -> None:
        start, stop = sorted(data.draw(st.tuples(st.integers(-3, count + 3), st.integers(-3, count + 3))))
        np.testing.assert_array_equal(store.state[start:stop], whole.state[start:stop])
        where = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=9)), np.int64)
        np.testing.assert_array_equal(store.action[where], whole.action[where])

    compare()
    np.testing.assert_array_equal(store.time[count - 1], whole.time[-1])
    with pytest.raises(IndexError):
        store.state[np.array([count])]


@pytest.mark.parametrize("codec", CODECS)
def test_stock_zarr_reads_every_codec(tmp_path: Path, make_episode: Make, codec: str) -> None:
    episode = replace(smooth(make_episode), depth={"front": np.full((3, 4, 4), 900, np.uint16)})
    with EpisodeStore.create(tmp_path / "store", episode.embodiment, codec) as store:
        store.append(episode)
        store.append(episode)
    store = EpisodeStore.open(tmp_path / "store")
    assert store.codec == codec
    group = zarr.open_group(tmp_path / "store", mode="r")
    for camera, images in episode.images.items():
        ours, theirs = store.frames(camera, range(6)), np.asarray(group[f"images/{camera}"][:])  # type: ignore[index]
        # Two decoders of JPEG may differ in how they round.
        assert np.abs(ours.astype(int) - theirs).max() <= (0 if CODECS[codec].lossless else 8)
        error = np.abs(ours[3:].astype(int) - images).mean()
        assert error == 0 if CODECS[codec].lossless else 0 < error < 4
    np.testing.assert_array_equal(store[1].depth["front"], 900)


def test_lossy_images_are_smaller_and_an_unknown_codec_is_named(tmp_path: Path, make_episode: Make) -> None:
    episode = smooth(make_episode, steps=20)
    sizes = {}
    for codec in CODECS:
        with EpisodeStore.create(tmp_path / codec, episode.embodiment, codec) as store:
            store.append(episode)
        sizes[codec] = sum(size for name, size in store.folder.sizes().items() if name.startswith("images"))
    assert sizes["webp"] < sizes["jpeg"] < sizes["zstd"] < sizes["raw"]
    with pytest.raises(InputError, match="no codec 'png'; a store's images are raw, lz4, zstd, jpeg, webp"):
        EpisodeStore.create(tmp_path / "png", episode.embodiment, "png")
    assert not (tmp_path / "png").exists()


@pytest.mark.parametrize("codec", ["zstd", "jpeg"])
def test_an_episode_is_copied_without_another_loss(tmp_path: Path, make_episode: Make, codec: str) -> None:
    episodes = [smooth(make_episode), replace(rich(make_episode, 2), images=smooth(make_episode, 5).images)]
    first = write_store(tmp_path / "a", episodes, codec)
    names = {"front": "top", "wrist": "hand"}
    robot = replace(first.embodiment, cameras=("top", "hand"), name="other")
    with EpisodeStore.create(tmp_path / "b", robot, codec) as second:
        second.append_from(first, 1, robot, instruction="raise the hoop", success=True)
        second.append_from(first, 0, robot)
    copied, original = EpisodeStore.open(tmp_path / "b")[0], first[1]
    for old, new in names.items():
        np.testing.assert_array_equal(copied.images[new], original.images[old])
    np.testing.assert_array_equal(copied.depth["hand"], original.depth["wrist"])
    assert (copied.instruction, copied.success, copied.spans) == ("raise the hoop", True, original.spans)
    np.testing.assert_array_equal(copied.extras["clock"], original.extras["clock"])
    with EpisodeStore.create(tmp_path / "c", first.embodiment, "raw") as recoded:
        recoded.append_from(first, 0)
    assert_equal(recoded[0], first[0])
    with (
        EpisodeStore.create(tmp_path / "d", first.embodiment, codec) as other,
        pytest.raises(InputError, match="cameras"),
    ):
        other.append_from(second, 0)


def test_edits_come_all_or_none(tmp_path: Path, make_episode: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store"
    with EpisodeStore.create(path, make_episode().embodiment) as store:
        for seed in range(3):
            store.append(make_episode(seed))
    edits = {0: {"instruction": "raise it"}, 2: {"success": True, "paraphrases": ("up",), "spans": (Span(0, 1, "go"),)}}
    cuts = 0
    while True:
        with EpisodeStore.open(path, "a") as store, monkeypatch.context() as patch:
            patch.setattr(Path, "replace", cut_before(cuts))
            try:
                store.edit(edits)
                break
            except Killed:
                cuts += 1
        assert [r.instruction for r in EpisodeStore.open(path).records] == ["lift the ring"] * 3
    assert cuts >= 3
    store = EpisodeStore.open(path)
    assert [r.instruction for r in store.records] == ["raise it", "lift the ring", "lift the ring"]
    assert_equal(store[2], make_episode(2, **edits[2]))
    with EpisodeStore.open(path, "a") as store:
        store.append(make_episode(3))
        with pytest.raises(InputError, match=r"success, .* can change, not length"):
            store.edit({0: {"length": 3}})
    assert [r.instruction for r in EpisodeStore.open(path).records][::3] == ["raise it", "lift the ring"]


def test_either_byte_order_is_stored(tmp_path: Path, make_episode: Make) -> None:
    extras = {"force": np.arange(5, dtype=">f4"), "clock": np.arange(5, dtype=">i8")}
    depth = {"wrist": np.arange(20, dtype=">u2").reshape(5, 2, 2)}
    with EpisodeStore.create(tmp_path / "store", make_episode().embodiment) as store:
        for _ in range(2):
            store.append(make_episode(extras=extras, depth=depth))
    for episode in EpisodeStore.open(tmp_path / "store"):
        assert check_equal(make_episode(extras=extras, depth=depth), episode) == 0
    group = zarr.open_group(tmp_path / "store", mode="r")
    np.testing.assert_array_equal(group["extras/force"][5:], np.arange(5))
    np.testing.assert_array_equal(group["depth/wrist"][5:], depth["wrist"])


def test_an_append_that_failed_leaves_nothing_behind_for_the_next(
    tmp_path: Path, make_episode: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EpisodeStore.create(tmp_path / "store", make_episode().embodiment) as store:
        store.append(make_episode(0))
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(TextChunks, "write", Mock(side_effect=Killed))  # the record is not written
            store.append(make_episode(1, extras={"force": np.ones(5, np.float32)}))
        after = make_episode(2, extras={"force": np.full((5, 2), 1 / 3)})
        store.append(after)
    assert_equal(EpisodeStore.open(tmp_path / "store")[1], after)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": {"top": np.zeros((5, 2, 2), np.uint16)}}, "depth of 'top', the cameras are front, wrist"),
        ({"depth": {"wrist": np.zeros((5, 2, 2), np.uint16)}}, r"depth of camera 'wrist' are uint16 \(5, 2, 2\)"),
        ({"extras": {"clock": np.zeros((5, 1))}}, "extra 'clock' are float64"),
        ({"extras": {"../clock": np.zeros(5)}}, "must have a plain name"),
        ({"extras": {"word": np.full(5, "x")}}, "must be of numbers"),
        ({"extras": {"long": np.zeros(5, np.longdouble)}}, "must be of numbers of up to 64 bits"),
        ({"extras": {"none": np.zeros((5, 0))}}, "'none' are empty"),
        ({"extras": {"zarr.json": np.zeros(5)}}, "must have a plain name"),
        ({"extras": {"force": np.zeros(5)}}, "'force/left' conflicts with 'force'"),
        ({"images": dict.fromkeys(("front", "wrist"), np.zeros((5, 0, 10, 3), np.uint8))}, "'front' are empty"),
        ({"spans": (Span(2, 9, "go"),)}, "'go' from 2 to 9 does not lie within the 5 steps"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, make_episode: Make, fields: dict, message: str) -> None:
    with EpisodeStore.create(tmp_path / "store", make_episode().embodiment) as store:
        store.append(rich(make_episode))
        before = store.folder.sizes()
        with pytest.raises(InputError, match=message):
            store.append(make_episode(1, **fields))
        assert store.folder.sizes() == before


@pytest.mark.parametrize("cameras", [("front", "front"), ("front", "front/left"), ("..",), ("zarr.json",)])
def test_a_camera_must_have_a_place_of_its_own(tmp_path: Path, make_episode: Make, cameras: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="a camera"):
        EpisodeStore.create(tmp_path / "store", replace(make_episode().embodiment, cameras=cameras))
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_is_none_of_a_store_makes_no_folder(
    tmp_path: Path, make_episode: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="http:// is not supported as a store's address") as error:
        EpisodeStore.create("http://id:secret@host/store", make_episode().embodiment)
    assert "secret" not in str(error.value) and list(tmp_path.iterdir()) == []

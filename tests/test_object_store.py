"""Stores in an object store: a real S3 server on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import obstore
import pytest
from obstore.exceptions import GenericError
from obstore.store import from_url
from stores import assert_equal

from vla.commands import cli
from vla.datasets.episodes import EpisodeStore
from vla.datasets.object_folder import RemoteFile
from vla.datasets.questions import Question
from vla.datasets.vqa import VqaItem, VqaStore
from vla.datasets.windows import Windows
from vla.errors import InputError
from vla.types import Episode

Make = Callable[..., Episode]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3", endpoint_url=f"http://{host}:{port}", aws_access_key_id="id", aws_secret_access_key="key",
        region_name="us-east-1",
    )  # fmt: skip
    client.create_bucket(Bucket="bucket")
    client.close()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def url(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    values = {"ENDPOINT_URL": server, "ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "AKIA-secret", "REGION": "us-east-1"}
    for name, value in {**values, "ALLOW_HTTP": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    return f"s3://bucket/{request.node.name}/demos.zarr"


def test_record_there_and_train_from_there(url: str, make_episode: Make) -> None:
    episodes = [make_episode(0), make_episode(1, steps=300, horizon=2), make_episode(2)]
    with EpisodeStore.create(url, episodes[0].embodiment) as store:
        for episode in episodes[:2]:
            store.append(episode)
    with EpisodeStore.open(url, "a") as store:
        store.append(episodes[2])
    store = EpisodeStore.open(url)
    assert store.path == url
    for stored, episode in zip(store, episodes, strict=True):
        assert_equal(stored, episode)
    windows = Windows(store, horizon=4)
    batch = windows.batch(np.array([0, 290, 3, 304]))
    for row, index in enumerate((0, 290, 3, 304)):
        example = windows[index]
        np.testing.assert_array_equal(batch.action[row], example.target)
        np.testing.assert_array_equal(batch.images["wrist"][row], example.images["wrist"])


def test_one_writer_and_what_a_killed_one_leaves(url: str, make_episode: Make) -> None:
    with EpisodeStore.create(url, make_episode().embodiment) as store:
        store.append(make_episode())
        with pytest.raises(InputError, match=r"another process is writing to s3://.*repair=true` removes its lock"):
            EpisodeStore.open(url, "a")
        assert len(EpisodeStore.open(url)) == 1
    # A writer that was killed: its lock is there, and frames that no record names.
    folder = store.folder
    folder.lock()
    folder.write("state/c/0/0", b"")
    with pytest.raises(InputError, match="another process"):
        EpisodeStore.open(url, "a")
    with EpisodeStore.open(url, "a", break_lock=True):
        pass
    with pytest.raises(InputError, match="state/c/0/0 is damaged"):
        EpisodeStore.open(url)[0]


def test_create_takes_no_place_that_is_taken(url: str, make_episode: Make) -> None:
    EpisodeStore.create(url, make_episode().embodiment).close()
    with pytest.raises(InputError, match="exists"):
        EpisodeStore.create(url, make_episode().embodiment)
    with pytest.raises(InputError, match="no episode store at s3://bucket/nowhere"):
        EpisodeStore.open("s3://bucket/nowhere")


def test_a_vqa_store_lies_there_too(url: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    item = VqaItem({"front": image}, (Question("color", "what color?", "red", "front"),), "test")
    store = VqaStore.create(url, ("front",), 8, 8)
    store.append([item] * 3)
    store.append([item])
    again = VqaStore(url)
    assert len(again) == 4 and again[3].questions == item.questions
    np.testing.assert_array_equal(again[3].images["front"], image)


@pytest.mark.parametrize("address", ["s3://id:secret@bucket/demos.zarr", "s3://bucket/demos.zarr?token=secret"])
def test_credentials_in_a_path_are_refused_and_never_shown(address: str, tmp_path: Path) -> None:
    for opened in (EpisodeStore.open, VqaStore):
        with pytest.raises(InputError, match=r"bucket/demos.zarr: give credentials in the environment") as error:
            opened(address)
        assert "secret" not in str(error.value)


def test_an_edit_leaves_one_index(url: str, make_episode: Make) -> None:
    with EpisodeStore.create(url, make_episode().embodiment) as store:
        store.append(make_episode())
        store.edit({0: {"instruction": "raise it"}})
    assert EpisodeStore.open(url).records[0].instruction == "raise it"
    names = {item["path"].split("/")[0] for page in obstore.list(from_url(url)) for item in page}
    assert "episodes" not in names and ".writer" not in names


def test_a_shard_that_is_replaced_while_it_is_opened_is_read_again(
    url: str, make_episode: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EpisodeStore.create(url, make_episode().embodiment) as store:
        store.append(make_episode())
    opened, look = [], RemoteFile.__init__

    def stale(self: RemoteFile, store: Any, name: str) -> None:
        look(self, store, name)
        self.size -= 16 * (name not in opened)  # as it was before the writer put the next
        opened.append(name)

    monkeypatch.setattr(RemoteFile, "__init__", stale)
    np.testing.assert_array_equal(EpisodeStore.open(url).state[:], make_episode().state)
    assert sorted(opened) == ["layout/c/0/0"] * 2 + ["state/c/0/0"] * 2


def test_what_cannot_be_reached_is_said_in_a_line(
    url: str, make_episode: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="cannot reach s3://no-such-bucket/store: .*not found"):
        EpisodeStore.create("s3://no-such-bucket/store", make_episode().embodiment)
    monkeypatch.setattr(obstore, "head", Mock(side_effect=GenericError("no answer\n\nDebug source:\nRetryError")))
    with pytest.raises(InputError, match=r"^cannot reach s3://bucket/.*: no answer$"):
        EpisodeStore.open(url)


@pytest.mark.slow  # a training from the store
def test_the_commands_take_an_address(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for episodes in (1, 2):
        assert cli.main(["record", "task=pick", f"episodes={episodes}", f"out={url}", "workers=1", "codec=jpeg"]) == 0
    store = EpisodeStore.open(url)
    assert (len(store), store.codec) == (2, "jpeg")
    assert cli.main(["data", "check", url]) == 0
    assert cli.main(["view", url, "--save", "shown.rrd"]) == 0
    assert Path("shown.rrd").stat().st_size > 10_000
    assert "AKIA-secret" not in "".join(capfd.readouterr())

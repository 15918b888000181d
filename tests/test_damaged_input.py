"""Whatever happened to a file, a command reads what is right or says in one line what is wrong, and writes nothing."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from damage import at_most, damage
from sample_datasets import EPISODES, QUESTIONS, SAMPLES, to_store

from vla.commands.compare import compare
from vla.commands.score import score
from vla.datasets.episodes import EpisodeStore
from vla.datasets.preferences import read_pairs
from vla.datasets.vqa import VqaStore
from vla.errors import InputError
from vla.models.vla import VLA
from vla.robots.teleoperators.script import Script

FEW = range(4)
MANY = range(500)
SECONDS = 30
"""What reading a tiny data set may take on a machine that is busy."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """What there is to be damaged, built once."""
    return cache(lambda name: SAMPLES[name](tmp_path_factory.mktemp(name)))


def check_episodes(src: Path, dst: Path) -> None:
    """Converts; what stands at `dst` afterwards is a store that is whole, if anything does."""
    try:
        to_store(src, dst, actions="absolute", **({"fps": 10} if "push_t" in src.name else {}))
    finally:
        if dst.exists():
            with EpisodeStore.open(dst) as store:
                for index in range(len(store)):
                    store[index]


def check_questions(src: Path, dst: Path) -> None:
    try:
        to_store(src, dst, size=8)
    finally:
        if dst.exists():
            store = VqaStore(dst)
            assert len([store[index] for index in range(len(store))])


def check_store_of_questions(src: Path, _: Path) -> None:
    store = VqaStore(src)
    for index in range(len(store)):
        store[index]
    list(store.questions())


def check_scores(src: Path, dst: Path) -> None:
    for folder in sorted(src.iterdir()):
        files = {file.stem: str(file) for file in folder.iterdir()}
        score(
            benchmark=folder.name,
            predictions=files.get("results", str(folder / "results.json")),
            references=files.get("references", str(folder / "references.json")),
            json=str(dst / folder.name),
        )


def check_pairs(src: Path, _: Path) -> None:
    for pair in read_pairs(src / "set.parquet"):
        pair.examples()


def check_comparison(src: Path, dst: Path) -> None:
    compare(a=str(src / "a"), b=str(src / "b"), out=str(dst))


CHECKS: dict[str, Callable[[Path, Path], object]] = {
    **dict.fromkeys(EPISODES, check_episodes),
    **dict.fromkeys(QUESTIONS, check_questions),
    "questions-store": check_store_of_questions,
    "checkpoint": lambda src, _: VLA.load(src),
    "script": lambda src, _: Script.from_file(str(src)),
    "answers": check_scores,
    "pairs": check_pairs,
    "comparison": check_comparison,
}


def outcome(name: str, source: Path, work: Path, seed: int, foreign: list[Path]) -> str:
    """What became of a copy of the data set that was damaged; raises what no user should see."""
    shutil.rmtree(work, ignore_errors=True)
    root = source if source.is_dir() else source.parent
    shutil.copytree(root, work / root.name)
    copy = work / root.name / source.relative_to(root)
    target = copy if name not in QUESTIONS else work / root.name
    what = damage(target, random.Random(f"{name} {seed}"), foreign)
    try:
        with at_most(SECONDS):
            CHECKS[name](copy, work / "out.zarr")
    except InputError as error:
        if "\n" in str(error):
            raise AssertionError(f"{seed}: {what}: more than a line: {error}") from error
        return f"refused: {error}"
    except BaseException as error:
        raise AssertionError(f"{name}, seed {seed}: {what}") from error
    return "read"


def survive(name: str, seeds: range, sound: Callable[[str], Path], tmp_path: Path) -> list[str]:
    source = sound(name)
    foreign = [file for other in ("robomimic", "llava") for file in sound(other).parent.rglob("*") if file.is_file()]
    return [outcome(name, source, tmp_path / "work", seed, foreign) for seed in seeds]


@pytest.fixture
def quiet(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    capsys.readouterr()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAMPLES)
def test_damage_is_read_or_named(name: str, sound: Callable[[str], Path], tmp_path: Path, quiet: None) -> None:
    CHECKS[name](sound(name), tmp_path / "sound.zarr")
    survive(name, FEW, sound, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAMPLES)
def test_much_damage_is_read_or_named(name: str, sound: Callable[[str], Path], tmp_path: Path, quiet: None) -> None:
    seen = survive(name, MANY, sound, tmp_path)
    assert 0 < sum(text == "read" for text in seen) < len(seen)

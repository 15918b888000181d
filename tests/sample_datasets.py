"""A small, sound data set of every format that `vla convert` reads, to be damaged by tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import test_diffusion_policy
import test_hdf5
import test_hf_parquet
import test_lerobot_v21
import test_rlds
import test_vqav2
import test_webdataset_tar
from omegaconf import OmegaConf
from PIL import Image

from vla.commands.convert import ConvertOptions, convert
from vla.commands.options import compose
from vla.datasets.episodes import EpisodeStore
from vla.embodiment import Embodiment
from vla.evaluation.rollouts.trial import Result
from vla.types import Episode, Span

STEPS = 4
ROBOT = Embodiment("toy", ("front", "wrist"), ("a", "b"), ("a", "b", "grip"), (-3.0,) * 3, (3.0,) * 3, 10.0)


@cache
def _defaults() -> dict[str, Any]:
    values = OmegaConf.to_container(compose("convert", ["src=a", "dst=b"]))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def to_store(src: Path, dst: Path, **options: object) -> None:
    """What `vla convert SRC DST` does, with its defaults."""
    convert(ConvertOptions(**(_defaults() | {"src": str(src), "dst": str(dst)} | options)))


def own_episode(seed: int, size: tuple[int, int] = (8, 10)) -> Episode:
    rng = np.random.default_rng(seed)
    return Episode(
        images={name: rng.integers(0, 256, (STEPS, *size, 3), np.uint8) for name in ROBOT.cameras},
        state=rng.normal(size=(STEPS, 2)),
        action=rng.normal(size=(STEPS, 3)),
        time=np.arange(STEPS) / ROBOT.control_hz,
        instruction="lift the ring",
        embodiment=ROBOT,
        success=True,
        info={"seed": seed},
        points=rng.uniform(size=(STEPS, 2, 2)),
        paraphrases=("raise the ring",),
        spans=(Span(0, 2, "reach"),),
        depth={ROBOT.cameras[0]: rng.integers(0, 4000, (STEPS, *size)).astype(np.uint16)},
        extras={"reward": rng.normal(size=STEPS)},
    )


def own_store(root: Path, size: tuple[int, int] = (8, 10), codec: str = "zstd") -> Path:
    with EpisodeStore.create(root / "own.zarr", ROBOT, codec=codec) as store:
        for seed in range(3):
            store.append(own_episode(seed, size))
    return root / "own.zarr"


def lerobot_v3(root: Path, use_videos: bool, size: tuple[int, int]) -> Path:
    to_store(own_store(root / "made", size), root / "v3", use_videos=use_videos)
    return root / "v3"


def lerobot_v21(root: Path) -> Path:
    return test_lerobot_v21.write_v21(root / "v21", {"ego": range(3)})


def robomimic(root: Path) -> Path:
    demonstrations = {f"demo_{i}": test_hdf5.demonstration(i, 3 + i) for i in range(3)}
    return test_hdf5.write_robomimic(root / "image.hdf5", demonstrations)


def libero(root: Path) -> Path:
    folder = root / "libero"
    folder.mkdir()
    for task in ("open_the_drawer", "push_the_plate"):
        with h5py.File(folder / f"{task}_demo.hdf5", "w") as file:
            for name, width in (("ee_states", 6), ("ee_pos", 3), ("ee_ori", 3), ("gripper_states", 2)):
                file[f"data/demo_0/obs/{name}"] = np.zeros((STEPS, width))
            file["data/demo_0/obs/agentview_rgb"] = test_hdf5.pixels(0, STEPS)
            file["data/demo_0/actions"] = np.zeros((STEPS, 7))
    return folder


def aloha(root: Path) -> Path:
    test_hdf5.write_aloha(root / "aloha", 2, "rows")
    return root / "aloha"


def diffusion_policy(root: Path) -> Path:
    return test_diffusion_policy.write(root / "push_t.zarr", test_diffusion_policy.push_t())


def rlds(root: Path) -> Path:
    return test_rlds.write(
        root / "rlds", [[test_rlds.episode(0, 3), test_rlds.episode(1, 4)], [test_rlds.episode(2, 3)]]
    )


def _talk(image: str) -> dict[str, object]:
    said = (("human", "<image>\nWhat color is it?"), ("gpt", "red"))
    return {"id": image, "image": image, "conversations": [{"from": who, "value": text} for who, text in said]}


def llava(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    names = ["a.png", "b.jpg", "c.webp", "d.gif"]
    for i, name in enumerate(names):
        Image.new("RGB", (12, 8), (60 * i, 10, 20)).save(root / name)
    (root / "questions.json").write_text(json.dumps([_talk(name) for name in names]))
    return root / "questions.json"


def vqav2(root: Path) -> Path:
    return test_vqav2.write(root, test_vqav2.QUESTIONS, test_vqav2.ANNOTATIONS)


def hf_parquet(root: Path) -> Path:
    rows = {
        "id": [f"row {i}" for i in range(20)],
        "image": [{"bytes": test_hf_parquet.png(i), "path": None} for i in range(20)],
        "question": [f"q{i}" for i in range(20)],
        "answer": [f"a{i}" for i in range(20)],
    }
    for part in range(2):
        pq.write_table(pa.table(rows), root / f"train-{part:05d}-of-00002.parquet", row_group_size=7)
    return root


def webdataset(root: Path, suffix: str = "tar") -> Path:
    for shard in range(2):
        asked = {f"{i}.json": {"question": f"q{i}", "answer": "a"} for i in range(3)}
        images = {f"{i}.png": test_webdataset_tar.png(10 * i + shard) for i in range(3)}
        members = {name: {**images, **asked}[name] for name in sorted({**images, **asked})}
        test_webdataset_tar.write(root / f"train-{shard:06d}.{suffix}", members)
    return root


def questions_store(root: Path) -> Path:
    to_store(llava(root / "made"), root / "vqa.zarr", size=8)
    return root / "vqa.zarr"


EPISODES: dict[str, Callable[[Path], Path]] = {
    "own-zstd": own_store,
    "own-jpeg": lambda root: own_store(root, codec="jpeg"),
    "lerobot-v3-images": lambda root: lerobot_v3(root, use_videos=False, size=(8, 10)),
    "lerobot-v3-video": lambda root: lerobot_v3(root, use_videos=True, size=(64, 64)),
    "lerobot-v2.1": lerobot_v21,
    "robomimic": robomimic,
    "libero": libero,
    "aloha": aloha,
    "diffusion-policy": diffusion_policy,
    "rlds": rlds,
}
QUESTIONS: dict[str, Callable[[Path], Path]] = {
    "llava": llava,
    "vqav2": vqav2,
    "parquet": hf_parquet,
    "webdataset": webdataset,
    "webdataset-gz": lambda root: webdataset(root, "tar.gz"),
}


def checkpoint(root: Path) -> Path:
    from conftest import tiny_model

    (root / "checkpoint").mkdir()
    tiny_model().save(root / "checkpoint")
    return root / "checkpoint"


def script(root: Path) -> Path:
    (root / "script.txt").write_text("x+ x+ close\nz+ save\n")
    return root / "script.txt"


def answers(root: Path) -> Path:
    """References and results of benchmarks in each kind of file: `<name>/references.*` and `<name>/results.*`."""
    choices = {letter: letter * 2 for letter in "ABCD"}
    vista = {"question": "?", "choices": ["a", "b"], "question_type": "multi_choice", "answer_type": "text"}
    rows: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
        "pope": (
            [{"question_id": i, "text": "?", "label": ("yes", "no")[i % 2]} for i in range(4)],
            [{"question_id": i, "answer": "yes"} for i in range(4)],
        ),
        "mathvista": (
            [{"pid": i, "answer": "a", "precision": None, "metadata": {"skills": ["x"]}, **vista} for i in range(4)],
            [{"pid": i, "extraction": "A", "answer": "a"} for i in range(4)],
        ),
        "ocrbench": (
            [{"dataset_name": "svt", "id": i, "question": "?", "answers": ["a"], "type": "t"} for i in range(4)],
            [{"dataset_name": "svt", "id": i, "predict": "A"} for i in range(4)],
        ),
        "mmbench": (
            [{"index": k * 10**6, "question": "?", "answer": "A", "category": "c", **choices} for k in range(4)],
            [{"index": k * 10**6, "prediction": "A"} for k in range(4)],
        ),
        "mmmu": (
            [{"id": f"validation_Art_{i}", "question": "?", "options": "['x', 'y']", "answer": "A"} for i in range(4)],
            [{"id": f"validation_Art_{i}", "response": "(A)"} for i in range(4)],
        ),
    }
    for name, pair in rows.items():
        folder = root / "scores" / name
        folder.mkdir(parents=True)
        for kind, table in zip(("references", "results"), pair, strict=True):
            if name == "mmbench":
                lines = [list(table[0]), *([str(value) for value in row.values()] for row in table)]
                (folder / f"{kind}.tsv").write_text("\n".join("\t".join(line) for line in lines))
            elif name == "mmmu":
                pq.write_table(pa.Table.from_pylist(table), folder / f"{kind}.parquet")
            elif name == "pope":
                (folder / f"{kind}.jsonl").write_text("\n".join(map(json.dumps, table)))
            else:
                (folder / f"{kind}.json").write_text(json.dumps(table, indent=1))
    return root / "scores"


def pairs(root: Path) -> Path:
    (root / "pairs").mkdir()
    said = {"question": "What?", "chosen": "a cat", "rejected": "a dog"}
    cells = [{"text": json.dumps(said), "image": {"bytes": test_hf_parquet.png(i), "path": "0.png"}} for i in range(4)]
    pq.write_table(pa.Table.from_pylist(cells), root / "pairs" / "set.parquet")
    return root / "pairs"


def comparison(root: Path) -> Path:
    for name in ("a", "b"):
        folder = root / "evaluations" / name
        folder.mkdir(parents=True)
        results = [asdict(Result(seed, "named", "go", name == "b", False, 10, 0)) for seed in range(4)]
        settings = {"policy": name, "task": "pick", "phrasing": "train", "axes": [], "randomize": True}
        report = settings | {"stopped_after": None, "measured": None, "results": results}
        (folder / "eval.json").write_text(json.dumps(report, indent=1))
    return root / "evaluations"


OTHERS: dict[str, Callable[[Path], Path]] = {
    "questions-store": questions_store,
    "checkpoint": checkpoint,
    "script": script,
    "answers": answers,
    "pairs": pairs,
    "comparison": comparison,
}
SAMPLES = EPISODES | QUESTIONS | OTHERS

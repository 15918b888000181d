"""Reader of RLDS datasets, such as those of Open X-Embodiment: TFRecords and a `features.json`. It needs no TensorFlow.

| field       | source                                                                                  |
|-------------|-----------------------------------------------------------------------------------------|
| cameras     | all uint8 images, also in grayscale or with transparency, which is dropped              |
| depth       | (h, w) or (h, w, 1), named like a camera plus the word depth: uint16 [mm] or float [m]  |
| action      | `action`, or the concatenated fields of a dict                                          |
| state       | `observation/state` or `proprio`, or the concatenated fields of the observation         |
| instruction | `language_instruction` and similar; `language_instruction_2` etc. are paraphrases       |
| spans       | the runs of equal instructions, if the instruction changes within the episode           |
| success     | `episode_metadata/success`, else whether there is a reward above 0; unknown if no       |
|             | episode has one                                                                         |
| info        | `episode_metadata`, and the other texts of the steps                                    |
| extras      | all other numbers of a step                                                             |

The order of an action's fields is world_vector, rotation_delta, gripper_closedness_action, the others by name, and
terminate_episode. The fields of an observation are base_pose_tool_reached and gripper_closed, or else all vectors of
floats by name without embeddings.

RLDS does not store the control rate: CONTROL_HZ has those of well-known datasets; others need `fps`. Records are found
by their lengths. Episodes are read, checked and decoded on access.

Source: Ramos et al., "RLDS: an Ecosystem to Generate, Share and Use Datasets in Reinforcement Learning", 2021.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vla.datasets.formats.columns import component_names, concatenate, control_rate, extremes, instruction_and_spans
from vla.datasets.formats.image_columns import FORMS, depth_mm
from vla.datasets.formats.rlds_features import read_features
from vla.datasets.formats.rlds_roles import Choice, Roles
from vla.datasets.formats.tfrecord import Values, parse_example, read_record, records
from vla.datasets.source_files import read_json_object
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.types import Episode

CONTROL_HZ = {
    "aloha_mobile": 50.0,
    "austin_buds_dataset": 20.0,
    "austin_sailor_dataset": 20.0,
    "austin_sirius_dataset": 20.0,
    "bc_z": 10.0,
    "berkeley_autolab_ur5": 5.0,
    "berkeley_cable_routing": 10.0,
    "berkeley_fanuc_manipulation": 10.0,
    "bridge": 5.0,
    "bridge_dataset": 5.0,
    "bridge_orig": 5.0,
    "droid": 15.0,
    "droid_100": 15.0,
    "fmb": 10.0,
    "fractal20220817_data": 3.0,
    "furniture_bench_dataset": 10.0,
    "jaco_play": 10.0,
    "kuka": 10.0,
    "language_table": 10.0,
    "stanford_hydra_dataset": 10.0,
    "taco_play": 15.0,
    "toto": 30.0,
    "utaustin_mutex": 20.0,
    "viola": 20.0,
}
"""Control rates [Hz] from the Open X-Embodiment overview, by name without `_converted_externally_to_rlds`."""
CONVERTED = "_converted_externally_to_rlds"
SHARD = re.compile(r".+-(?P<split>[^-.]+)\.(?P<format>\w+)-(?P<shard>\d{5,})-of-(?P<count>\d{5,})")


def detect(path: Path) -> bool:
    """Whether `path`, or a folder of one version in it, is a dataset of TensorFlow Datasets."""
    return bool(_versions(path))


def open_source(
    path: Path,
    *,
    fps: float | None = None,
    instruction: str | None = None,
    state: Sequence[str] | None = None,
    action: Sequence[str] | None = None,
    cameras: Sequence[str] | None = None,
) -> RldsSource:
    """Opens all splits of the dataset in the folder `path`, in the order of their names.

    Args:
        path: the folder of the dataset, or the parent of its only version.
        fps: steps a second. Default: the rate in CONTROL_HZ.
        instruction: the instruction of all episodes. Default: those of the dataset.
        state: names of the features that form the state, in order. Default: as above.
        action: names of the features that form the action, in order. Default: as above.
        cameras: names of the cameras to read. Default: all.

    Raises:
        InputError: a file is missing, damaged or truncated; there are no steps or no actions; or the control rate is
            unknown.
    """
    versions = _versions(path)
    if len(versions) != 1:
        names = ", ".join(folder.name for folder in versions)
        raise InputError(
            f"{path} holds several versions, choose one: {names}"
            if names
            else f"{path} is not an RLDS data set: it has no dataset_info.json and features.json"
        )
    return RldsSource(versions[0], fps, instruction, Choice(state, action, cameras))


class RldsSource:
    """The episodes of an RLDS dataset (see `open_source`)."""

    def __init__(
        self,
        folder: Path,
        fps: float | None,
        instruction: str | None,
        choice: Choice,
    ) -> None:
        self._instruction = instruction
        info = _dataset_info(folder / "dataset_info.json")
        name = info["name"]
        rate = control_rate(fps, CONTROL_HZ.get(name.removesuffix(CONVERTED)), f"RLDS data set {name} in {folder}")
        self._step, self._once = read_features(folder / "features.json")
        self._roles = Roles.of(self._step, self._once, choice, str(folder))
        self._episodes: list[tuple[Path, str, int]] = []
        self._rewarded: list[bool] = []
        self._faults: dict[int, str] = {}
        shards, lengths = _shards(folder), _lengths(info, folder / "dataset_info.json")
        components = self._components(self._roles.action)
        low, high = extremes(self._scan(shards, lengths), len(components))
        self.embodiment = Embodiment(
            name=name,
            cameras=tuple(self._roles.cameras),
            state=self._components(self._roles.state),
            action=components,
            action_low=low,
            action_high=high,
            control_hz=rate,
        )
        features = (self._step | self._once).values()
        self.provenance: Mapping[str, Any] = {
            "format": "rlds",
            "name": folder.name,
            "dataset": name,
            "version": info.get("version"),
            "license": info.get("redistributionInfo", {}).get("license"),
            "features": {f.key: [f.kind, list(f.shape), f.dtype] for f in features},
            "state": list(self._roles.state),
            "action": list(self._roles.action),
            "left_out": dict(self._roles.left_out),
            "shards": [path.name for path in shards],
            "remarks": [*self._image_remarks(), *_missing_shards(shards)],
        }

    def __len__(self) -> int:
        return len(self._episodes)

    def __getitem__(self, index: int) -> Episode:
        """Episode `index`. Raises InputError that names the record and the feature if it is damaged."""
        if index in self._faults:
            raise InputError(self._faults[index])
        path, split, offset = self._episodes[index]
        where = f"{path} at byte {offset}"
        values = _parse(read_record(path, offset), where)
        steps = self._steps(values, where)

        def column(name: str) -> np.ndarray:
            return self._column(name, values, steps, where)

        roles = self._roles
        candidates = [self._texts(name, values, steps, where) for name in roles.language]
        if self._instruction is not None:
            candidates = [[self._instruction] * steps]
        by_step = next(filter(any, candidates), [""] * steps)
        instruction, spans = instruction_and_spans(by_step)
        texts = {name: self._texts(name, values, steps, where) for name in roles.texts}
        return Episode(
            images={camera: column(name) for camera, name in roles.cameras.items()},
            state=concatenate(map(column, roles.state.values()), steps),
            action=concatenate(map(column, roles.action.values()), steps),
            time=np.arange(steps) / self.embodiment.control_hz,
            instruction=instruction,
            embodiment=self.embodiment,
            success=self._success(index, values),
            info={"split": split, **self._metadata(values)}
            | {name: text if len(set(text)) > 1 else text[0] for name, text in texts.items()},
            paraphrases=tuple(sorted({text for row in candidates for text in row} - {"", *by_step})),
            spans=spans,
            depth={camera: depth_mm(column(name)) for camera, name in roles.depth.items()},
            extras={extra: column(name) for extra, name in roles.extras.items()},
        )

    def numbers(self, index: int) -> tuple[Float[np.ndarray, "t s"], Float[np.ndarray, "t a"]]:
        """State and action of episode `index`, without its images."""
        if index in self._faults:
            raise InputError(self._faults[index])
        path, _, offset = self._episodes[index]
        where = f"{path} at byte {offset}"
        features = {"state": self._roles.state.values(), "action": self._roles.action.values()}
        keys = {self._step[name].key for names in features.values() for name in names}
        values = _parse(read_record(path, offset), where, keys)
        steps = self._steps(values, where)
        columns = {
            kind: [self._column(name, values, steps, where) for name in names] for kind, names in features.items()
        }
        return concatenate(columns["state"], steps), concatenate(columns["action"], steps)

    def faults(self) -> Mapping[int, str]:
        """The reasons for unreadable episodes, as far as known without decoding them."""
        return self._faults

    def _image_remarks(self) -> list[str]:
        """A remark for each camera whose images do not have three channels."""
        forms = {camera: self._step[path].shape[-1] for camera, path in self._roles.cameras.items()}
        return [f"{camera} is read as images ({FORMS[form]})" for camera, form in forms.items() if form in FORMS]

    def _components(self, columns: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(n for name, path in columns.items() for n in component_names(name, self._step[path].shape))

    def _get(self, values: Mapping[str, Values], name: str) -> Values:
        feature = self._step.get(name) or self._once[name]
        return values.get(feature.key, [])

    def _column(self, name: str, values: Mapping[str, Values], steps: int, where: str) -> np.ndarray:
        return self._step[name].column(self._get(values, name), steps, where)

    def _steps(self, values: Mapping[str, Values], where: str) -> int:
        """The number of actions in the record."""
        first = self._step[next(iter(self._roles.action.values()))]
        row = 1 if first.encoding != "none" else int(np.prod(first.shape))
        steps, remainder = divmod(len(values.get(first.key, [])), row)
        if remainder or not steps:
            raise InputError(f"{where}: {first.key} has {len(values.get(first.key, []))} numbers, expected t x {row}")
        return steps

    def _scan(
        self, shards: Sequence[Path], lengths: Mapping[tuple[str, int], int]
    ) -> Iterator[Float[np.ndarray, "t a"]]:
        """The actions of all readable records. Records their offsets, whether they have a reward, and the faults."""
        for path in shards:
            split, shard = _shard(path)
            before, fault = len(self._episodes), ""
            try:
                for offset, payload in records(path):
                    self._episodes.append((path, split, offset))
                    self._rewarded.append(False)
                    yield from self._note(payload, f"{path} at byte {offset}")
            except InputError as error:
                fault = str(error)
            count, stated = len(self._episodes) - before, lengths.get((split, shard))
            if stated is not None and count > stated:
                raise InputError(f"{path} has {count} records, dataset_info.json states {stated}: fetch both again")
            # If the dataset does not state the number of records, one fault represents all missing ones.
            missing = int(bool(fault)) if stated is None else stated - count
            self._add_missing(missing, (path, split, -1), fault or _too_few(path, count, stated))

    def _add_missing(self, count: int, episode: tuple[Path, str, int], fault: str) -> None:
        """Adds entries for episodes that are missing in their file."""
        for _ in range(count):
            self._faults[len(self._episodes)] = fault
            self._episodes.append(episode)
            self._rewarded.append(False)

    def _note(self, payload: memoryview, where: str) -> Iterator[Float[np.ndarray, "t a"]]:
        """The actions of the last record, if they can be read. Records whether it has a reward."""
        actions = self._roles.action.values()
        keys = {self._step[name].key for name in (*actions, "reward") if name in self._step}
        try:
            values = _parse(payload, where, keys)
            steps = self._steps(values, where)
            rewards = np.asarray(self._get(values, "reward") if "reward" in self._step else [])
            self._rewarded[-1] = bool((rewards > 0).any())
            yield concatenate((self._column(name, values, steps, where) for name in actions), steps)
        except InputError as error:
            self._faults[len(self._episodes) - 1] = str(error)

    def _success(self, index: int, values: Mapping[str, Values]) -> bool | None:
        stated = values.get("episode_metadata/success")
        if isinstance(stated, np.ndarray) and len(stated):
            return bool(stated[0])
        return self._rewarded[index] if any(self._rewarded) else None

    def _texts(self, name: str, values: Mapping[str, Values], steps: int, where: str) -> list[str]:
        """The text of the feature at each step."""
        stored = self._get(values, name)
        if isinstance(stored, list):
            texts = [text.decode("utf-8", "replace").strip() for text in stored]
        else:  # character codes, padded with zeros
            rows = self._column(name, values, steps, where)
            texts = ["".join(chr(c) for c in row if c).strip() for row in rows.tolist()]
        if name not in self._step:
            texts = (texts or [""]) * steps
        if len(texts) != steps:
            raise InputError(f"{where}: {name} has {len(texts)} rows for {steps} actions")
        return texts

    def _metadata(self, values: Mapping[str, Values]) -> dict[str, Any]:
        """The features per episode, in JSON values."""
        metadata: dict[str, Any] = {}
        for name, feature in self._once.items():
            if feature.kind not in ("text", "tensor") or feature.encoding != "none":
                continue
            stated = values.get(feature.key, [])
            if isinstance(stated, list):
                plain: list[Any] = [text.decode("utf-8", "replace") for text in stated]
            else:
                plain = stated.astype(feature.dtype).tolist()
            metadata[name.removeprefix("episode_metadata/")] = plain[0] if len(plain) == 1 else plain
        return metadata


def _versions(path: Path) -> list[Path]:
    folders = [path, *sorted(p for p in path.iterdir() if p.is_dir())] if path.is_dir() else []
    versions = [f for f in folders if (f / "dataset_info.json").is_file() and (f / "features.json").is_file()]
    return versions[:1] if versions[:1] == [path] else versions


def _dataset_info(path: Path) -> dict[str, Any]:
    info = read_json_object(path)
    if not isinstance(info.get("name"), str):
        raise InputError(f"{path} does not name a data set: it has no 'name'")
    return info


def _lengths(info: Mapping[str, Any], path: Path) -> dict[tuple[str, int], int]:
    """The number of records of each (split, shard), as far as the dataset's information in `path` states them."""
    try:
        return {
            (str(split["name"]), shard): int(length)
            for split in info.get("splits", ())
            for shard, length in enumerate(split.get("shardLengths", ()))
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: its 'splits' cannot be read ({error!r})") from error


def _shards(folder: Path) -> list[Path]:
    shards = sorted(path for path in folder.iterdir() if SHARD.fullmatch(path.name))
    if not shards:
        raise InputError(f"{folder} has no files with names like train.tfrecord-00000-of-00001: fetch the data")
    for path in shards:
        if not path.name.rsplit("-", 3)[0].endswith(".tfrecord"):
            raise InputError(f"{path} is not a TFRecord: only data sets in the tfrecord file format can be read")
    return shards


def _missing_shards(shards: Sequence[Path]) -> list[str]:
    """A remark for each split with missing files."""
    present: dict[tuple[str, int], set[int]] = {}
    for path in shards:
        match = SHARD.fullmatch(path.name)
        assert match is not None
        present.setdefault((match["split"], int(match["count"])), set()).add(int(match["shard"]))
    return [
        f"{count - len(shards)} of {count} files of the split {split} are missing: their episodes are left out"
        for (split, count), shards in present.items()
        if len(shards) < count
    ]


def _too_few(path: Path, count: int, stated: int | None) -> str:
    return f"{path} has {count} records, dataset_info.json states {stated}: fetch it again"


def _shard(path: Path) -> tuple[str, int]:
    match = SHARD.fullmatch(path.name)
    assert match is not None
    return match["split"], int(match["shard"])


def _parse(payload: bytes | memoryview, where: str, names: set[str] | None = None) -> dict[str, Values]:
    try:
        return parse_example(payload, names)
    except ValueError as error:
        raise InputError(f"{where} is not a tf.train.Example: {error}") from error

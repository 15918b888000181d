"""Reader of RLDS data sets, which Open X-Embodiment's are: TFRecords beside a `features.json`, without TensorFlow.

| what        | taken from                                                                              |
|-------------|-----------------------------------------------------------------------------------------|
| cameras     | every uint8 image, also grey or with transparency, which is dropped                     |
| depth       | (h, w) or (h, w, 1), named as a camera but for the word depth: uint16 [mm] or float [m] |
| action      | `action`, or the parts of a dict, side by side                                          |
| state       | `observation/state` or `proprio`, or the parts of the observation, side by side         |
| instruction | `language_instruction` and such; a second one (`language_instruction_2`) paraphrases it |
| spans       | the runs of one instruction, where it changes within the episode                        |
| success     | `episode_metadata/success`, else whether there is a reward above 0; unknown where no    |
|             | episode has one                                                                         |
| info        | `episode_metadata`, and the other texts of the steps                                    |
| extras      | every other number of a step                                                            |

The parts of an action are world_vector, rotation_delta, gripper_closedness_action, the others by name, and
terminate_episode. Those of an observation are base_pose_tool_reached and gripper_closed, else every vector of floats
by name but embeddings.

RLDS does not store the control rate: CONTROL_HZ has those of well-known data sets, others need `fps`.
Records are found by their lengths; an episode is read, checked and decoded when it is asked for.

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
"""Steps a second [Hz], as the Open X-Embodiment overview states them. Names without `_converted_externally_to_rlds`."""
CONVERTED = "_converted_externally_to_rlds"
SHARD = re.compile(r".+-(?P<split>[^-.]+)\.(?P<format>\w+)-(?P<shard>\d{5,})-of-(?P<count>\d{5,})")


def detect(path: Path) -> bool:
    """Whether `path`, or a folder of one version in it, holds a data set that TensorFlow Datasets wrote."""
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
    """All splits of the data set in the folder `path` (or in its only version's), in the order of their names.

    Args:
        fps: steps a second. Default: what CONTROL_HZ has for the data set's name.
        instruction: what all episodes do. Default: what each says.
        state: names of the features of the state, in order. Default: as above.
        action: names of the features of the action, in order. Default: as above.
        cameras: names of the cameras to take. Default: all.

    Raises:
        InputError: a file is missing, damaged or cut short; there are no steps or no actions; or no rate is known.
    """
    versions = _versions(path)
    if len(versions) != 1:
        found = ", ".join(folder.name for folder in versions)
        raise InputError(
            f"{path} holds several versions, choose one: {found}"
            if found
            else f"{path} is no RLDS data set: it has no dataset_info.json and features.json"
        )
    return RldsSource(versions[0], fps, instruction, Choice(state, action, cameras))


class RldsSource:
    """The episodes of an RLDS data set; see `open_source`."""

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
        self._places: list[tuple[Path, str, int]] = []
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
        return len(self._places)

    def __getitem__(self, index: int) -> Episode:
        """Episode `index`. Raises InputError naming the record and the feature where it is damaged."""
        if index in self._faults:
            raise InputError(self._faults[index])
        path, split, place = self._places[index]
        where = f"{path} at byte {place}"
        values = _parse(read_record(path, place), where)
        steps = self._steps(values, where)

        def column(name: str) -> np.ndarray:
            return self._column(name, values, steps, where)

        roles = self._roles
        told = [self._texts(name, values, steps, where) for name in roles.language]
        if self._instruction is not None:
            told = [[self._instruction] * steps]
        said = next(filter(any, told), [""] * steps)
        whole, spans = instruction_and_spans(said)
        texts = {name: self._texts(name, values, steps, where) for name in roles.texts}
        return Episode(
            images={camera: column(name) for camera, name in roles.cameras.items()},
            state=concatenate(map(column, roles.state.values()), steps),
            action=concatenate(map(column, roles.action.values()), steps),
            time=np.arange(steps) / self.embodiment.control_hz,
            instruction=whole,
            embodiment=self.embodiment,
            success=self._success(index, values),
            info={"split": split, **self._metadata(values)}
            | {name: text if len(set(text)) > 1 else text[0] for name, text in texts.items()},
            paraphrases=tuple(sorted({text for row in told for text in row} - {"", *said})),
            spans=spans,
            depth={camera: depth_mm(column(name)) for camera, name in roles.depth.items()},
            extras={extra: column(name) for extra, name in roles.extras.items()},
        )

    def numbers(self, index: int) -> tuple[Float[np.ndarray, "t s"], Float[np.ndarray, "t a"]]:
        """State and action of episode `index`, without its images."""
        if index in self._faults:
            raise InputError(self._faults[index])
        path, _, place = self._places[index]
        where = f"{path} at byte {place}"
        parts = {"state": self._roles.state.values(), "action": self._roles.action.values()}
        keys = {self._step[name].key for names in parts.values() for name in names}
        values = _parse(read_record(path, place), where, keys)
        steps = self._steps(values, where)
        columns = {kind: [self._column(name, values, steps, where) for name in names] for kind, names in parts.items()}
        return concatenate(columns["state"], steps), concatenate(columns["action"], steps)

    def faults(self) -> Mapping[int, str]:
        """Why episodes cannot be read, as far as that is known without decoding them."""
        return self._faults

    def _image_remarks(self) -> list[str]:
        """A sentence for each camera whose images are not of three colors."""
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
        """How many actions the record has."""
        first = self._step[next(iter(self._roles.action.values()))]
        row = 1 if first.encoding != "none" else int(np.prod(first.shape))
        steps, left = divmod(len(values.get(first.key, [])), row)
        if left or not steps:
            raise InputError(f"{where}: {first.key} has {len(values.get(first.key, []))} numbers, expected t x {row}")
        return steps

    def _scan(
        self, shards: Sequence[Path], lengths: Mapping[tuple[str, int], int]
    ) -> Iterator[Float[np.ndarray, "t a"]]:
        """The actions of every readable record; notes the records' places, which have a reward, and the faults."""
        for path in shards:
            split, shard = _shard(path)
            before, fault = len(self._places), ""
            try:
                for place, payload in records(path):
                    self._places.append((path, split, place))
                    self._rewarded.append(False)
                    yield from self._note(payload, f"{path} at byte {place}")
            except InputError as error:
                fault = str(error)
            found, stated = len(self._places) - before, lengths.get((split, shard))
            if stated is not None and found > stated:
                raise InputError(f"{path} has {found} records, dataset_info.json says {stated}: fetch both again")
            # Where the data set does not say how many records there were, one stands for those that are missing.
            missing = int(bool(fault)) if stated is None else stated - found
            self._miss(missing, (path, split, -1), fault or _too_few(path, found, stated))

    def _miss(self, count: int, place: tuple[Path, str, int], fault: str) -> None:
        """Notes episodes that are not in their file."""
        for _ in range(count):
            self._faults[len(self._places)] = fault
            self._places.append(place)
            self._rewarded.append(False)

    def _note(self, payload: memoryview, where: str) -> Iterator[Float[np.ndarray, "t a"]]:
        """The actions of the last record that was found, if they can be read; notes whether it has a reward."""
        actions = self._roles.action.values()
        keys = {self._step[name].key for name in (*actions, "reward") if name in self._step}
        try:
            values = _parse(payload, where, keys)
            steps = self._steps(values, where)
            rewards = np.asarray(self._get(values, "reward") if "reward" in self._step else [])
            self._rewarded[-1] = bool((rewards > 0).any())
            yield concatenate((self._column(name, values, steps, where) for name in actions), steps)
        except InputError as error:
            self._faults[len(self._places) - 1] = str(error)

    def _success(self, index: int, values: Mapping[str, Values]) -> bool | None:
        stated = values.get("episode_metadata/success")
        if isinstance(stated, np.ndarray) and len(stated):
            return bool(stated[0])
        return self._rewarded[index] if any(self._rewarded) else None

    def _texts(self, name: str, values: Mapping[str, Values], steps: int, where: str) -> list[str]:
        """What the feature says at each step."""
        found = self._get(values, name)
        if isinstance(found, list):
            texts = [text.decode("utf-8", "replace").strip() for text in found]
        else:  # characters as numbers, filled up with zeros
            rows = self._column(name, values, steps, where)
            texts = ["".join(chr(c) for c in row if c).strip() for row in rows.tolist()]
        if name not in self._step:
            texts = (texts or [""]) * steps
        if len(texts) != steps:
            raise InputError(f"{where}: {name} has {len(texts)} rows for {steps} actions")
        return texts

    def _metadata(self, values: Mapping[str, Values]) -> dict[str, Any]:
        """What is told once an episode, as JSON values."""
        found: dict[str, Any] = {}
        for name, feature in self._once.items():
            if feature.kind not in ("text", "tensor") or feature.encoding != "none":
                continue
            stated = values.get(feature.key, [])
            if isinstance(stated, list):
                plain: list[Any] = [text.decode("utf-8", "replace") for text in stated]
            else:
                plain = stated.astype(feature.dtype).tolist()
            found[name.removeprefix("episode_metadata/")] = plain[0] if len(plain) == 1 else plain
        return found


def _versions(path: Path) -> list[Path]:
    folders = [path, *sorted(p for p in path.iterdir() if p.is_dir())] if path.is_dir() else []
    found = [f for f in folders if (f / "dataset_info.json").is_file() and (f / "features.json").is_file()]
    return found[:1] if found[:1] == [path] else found


def _dataset_info(path: Path) -> dict[str, Any]:
    info = read_json_object(path)
    if not isinstance(info.get("name"), str):
        raise InputError(f"{path} does not name a data set: it has no 'name'")
    return info


def _lengths(info: Mapping[str, Any], path: Path) -> dict[tuple[str, int], int]:
    """How many records each shard of each split has, as far as the data set says so in the file at `path`."""
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
        raise InputError(f"{folder} has no files named like train.tfrecord-00000-of-00001: fetch the data")
    for path in shards:
        if not path.name.rsplit("-", 3)[0].endswith(".tfrecord"):
            raise InputError(f"{path} is no TFRecord: only data sets in the tfrecord file format can be read")
    return shards


def _missing_shards(shards: Sequence[Path]) -> list[str]:
    """A sentence for each split of which not all files are there."""
    there: dict[tuple[str, int], set[int]] = {}
    for path in shards:
        match = SHARD.fullmatch(path.name)
        assert match is not None
        there.setdefault((match["split"], int(match["count"])), set()).add(int(match["shard"]))
    return [
        f"{count - len(found)} of {count} files of the split {split} are not there: their episodes are left out"
        for (split, count), found in there.items()
        if len(found) < count
    ]


def _too_few(path: Path, found: int, stated: int | None) -> str:
    return f"{path} has {found} records, dataset_info.json says {stated}: fetch it again"


def _shard(path: Path) -> tuple[str, int]:
    match = SHARD.fullmatch(path.name)
    assert match is not None
    return match["split"], int(match["shard"])


def _parse(payload: bytes | memoryview, where: str, names: set[str] | None = None) -> dict[str, Values]:
    try:
        return parse_example(payload, names)
    except ValueError as error:
        raise InputError(f"{where} is not a tf.train.Example: {error}") from error

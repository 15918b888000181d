"""Experience replay: a share of the rows is from the data on which a policy was trained before."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla.errors import InputError
from vla.models.processor import Processor
from vla.training.demonstrations import Demonstrations


@dataclass(frozen=True, eq=False)
class Replay:
    """The stores of demonstrations on which a policy was trained.

    Attributes:
        stores: The stores by the name of the source.
        shares: The share of each among the rows of all of them.
        paths: The path of each.
    """

    stores: Mapping[str, Demonstrations]
    shares: Mapping[str, float]
    paths: Mapping[str, str]

    @classmethod
    def open(cls, checkpoints: Sequence[Path]) -> Replay:
        """Opens the stores of the runs that wrote `checkpoints`, and those that these runs replayed.

        Raises:
            InputError: a checkpoint does not name its data, or a store is missing or has changed since.
        """
        stores: dict[str, Demonstrations] = {}
        weights: dict[str, float] = {}
        names: dict[str, str] = {}
        for checkpoint in checkpoints:
            for path, share, rows in _sources(checkpoint):
                if path not in names:
                    names[path] = _name(path, stores)
                    stores[names[path]] = _open(path, checkpoint, rows)
                weights[names[path]] = weights.get(names[path], 0.0) + share
        if not stores:
            raise InputError(
                "replay= needs a policy in backbone= that names the demonstrations on which it was trained, and "
                f"{' and '.join(map(str, checkpoints)) or 'there is none'} does not"
            )
        total = sum(weights.values())
        return cls(stores, {name: w / total for name, w in weights.items()}, {n: path for path, n in names.items()})

    def weights(self, share: float, weights: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
        """The weights of all sources in a mixture in which these stores have `share` of the rows of demonstrations.

        Args:
            share: The share.
            weights: The weights of the other sources.
            names: The sources of demonstrations among these.

        Raises:
            InputError: the share is not between 0 and 1, or there are no other demonstrations.
        """
        if not 0 < share < 1:
            raise InputError(f"replay={share}: takes a share of the rows, above 0 and below 1")
        total = sum(weights.get(name, 0.0) for name in names)
        if total <= 0:
            raise InputError("replay= takes its rows from those of new demonstrations, and there are none: set data=")
        others = {name: w * (1 - share) if name in names else w for name, w in weights.items()}
        return others | {name: total * share * part for name, part in self.shares.items()}

    def check(self, processor: Processor) -> None:
        """Raises InputError if the model does not control the robot of a store any more."""
        for name, demonstrations in self.stores.items():
            body = demonstrations.store.embodiment
            try:
                robot = processor.robot(body.name)
                robot.embodiment.union([body], robot.fewer_cameras)
            except InputError as error:
                raise InputError(f"replay: {self.paths[name]} does not fit the model: {error}") from error


def _sources(checkpoint: Path) -> Iterator[tuple[str, float, int | None]]:
    """The path, the share and the number of rows of each store on which the run of a checkpoint was trained."""
    try:
        settings: Mapping[str, Any] = json.loads((checkpoint / "training.json").read_text()).get("settings", {})
    except (OSError, ValueError):
        return
    data, rows, shares = (settings.get(name) or {} for name in ("data", "rows", "shares"))
    paths = {"robot": data} if isinstance(data, str) else data
    for source, path in {**paths, **settings.get("replay_data", {})}.items():
        if (share := shares.get(source, 0.0)) > 0:
            yield path, share, rows.get(source)


def _name(path: str, taken: Mapping[str, Any]) -> str:
    name = stem = f"replay_{Path(path).stem}"
    number = 2
    while name in taken:
        name, number = f"{stem}_{number}", number + 1
    return name


def _open(path: str, checkpoint: Path, rows: int | None) -> Demonstrations:
    try:
        found = Demonstrations.open(path)
    except InputError as error:
        raise InputError(f"replay: {checkpoint} was trained on {path}, which cannot be read now: {error}") from error
    if rows not in (None, count := len(found.windows(1))):
        raise InputError(
            f"replay: {path} has changed since {checkpoint} was trained on it: {count} steps for training in place of "
            f"{rows}; restore it, or name it in data= instead"
        )
    return found

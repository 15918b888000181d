"""The results and episodes of an evaluation, stored incrementally in its folder.

| file             | content                                                              |
|------------------|----------------------------------------------------------------------|
| settings.json    | the settings of all trials: policy, task, phrasing, scenes           |
| results.jsonl    | one line per finished trial, in order of completion                  |
| rollouts.zarr    | the recorded episodes, each written atomically                       |

An interrupted evaluation continues with the missing trials; crashed trials are repeated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vla.common.atomic import write_json
from vla.common.renamed_keys import EVALUATION, current_keys
from vla.datasets.episodes import EpisodeStore
from vla.datasets.image_stream import ImageStream
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.evaluation.rollouts.trial import Key, Result, Trial
from vla.types import Episode

STORE = "rollouts.zarr"


class ResultStore:
    """Stores results and episodes; a context manager, and a `zarr_recorder.Sink` for finished episodes.

    Raises:
        InputError: the folder contains something else, or an evaluation with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], embodiment: Embodiment) -> None:
        check_folder(folder, settings)
        self.folder, self.embodiment = folder, embodiment
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "settings.json", settings)
        path = folder / STORE
        self._store = EpisodeStore.open(path, "a") if path.exists() else EpisodeStore.create(path, embodiment)
        self._recorded = {key_of(record.info) for record in self._store.records}
        self.results = read_results(folder)
        path = folder / "results.jsonl"
        truncated = path.exists() and path.read_text()[-1:] not in ("", "\n")
        self._lines = path.open("a")
        self._lines.write("\n" * truncated)

    def __enter__(self) -> ResultStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self._lines.close()
        self._store.close()

    def missing(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials without a result, and those that crashed."""
        return [trial for trial in trials if (done := self.results.get(trial.key)) is None or done.crash]

    def stream_images(self) -> ImageStream:
        """A receiver for the images of a new episode, which writes them to the store."""
        return self._store.stream_images()

    def append(self, episode: Episode, images: ImageStream | None = None) -> None:
        """Stores the episode, unless an interrupted run stored it before its result."""
        if (key := key_of(episode.info)) not in self._recorded:
            self._store.append(episode, images)
            self._recorded.add(key)

    def note(self, result: Result) -> None:
        """Adds a result, and appends it to results.jsonl."""
        self.results[result.key] = result
        self._lines.write(json.dumps(asdict(result)) + "\n")
        self._lines.flush()

    def copy_from(self, folder: Path) -> None:
        """Copies missing results and episodes from another evaluation with the same settings."""
        with EpisodeStore.open(folder / STORE) as other:
            for index, record in enumerate(other.records):
                if (key := key_of(record.info)) not in self._recorded:
                    self._store.append_from(other, index)
                    self._recorded.add(key)
        for key, result in read_results(folder).items():
            if key not in self.results or self.results[key].crash:
                self.note(result)


def check_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises InputError if `folder` cannot be used for an evaluation with these settings."""
    if (folder / "settings.json").exists():
        saved = current_keys(json.loads((folder / "settings.json").read_text()), EVALUATION)
        # The delay is measured later, when it is first needed.
        if changed := sorted(k for k in {**settings, **saved} if k != "measured" and saved.get(k) != settings.get(k)):
            if changed == ["weights"]:
                reason = "of other weights: the policy was trained on since, or is another of the same name"
            else:
                reason = f"with other settings ({', '.join(changed)})"
            raise InputError(f"{folder} holds an evaluation {reason}: set out=")
    elif folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no evaluation: remove it, or set another folder with out=")


def read_results(folder: Path) -> dict[Key, Result]:
    """The last result of each trial in `folder`; truncated lines are skipped."""
    path, results = folder / "results.jsonl", dict[Key, Result]()
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(json.JSONDecodeError):
            result = Result(**json.loads(line))
            results[result.key] = result
    return results


def key_of(info: Mapping[str, Any]) -> Key:
    """The key of the trial whose episode has this `info`."""
    return info["group"], info.get("execution", "naive"), info.get("delay", 0.0), info["seed"]

"""Shows recorded episodes in Rerun's viewer, or writes them to a file for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import rerun as rr

from vla.common.atomic import atomic_replace
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.recording.recorder import Recorder
from vla.recording.rerun_recorder import RerunRecorder, blueprint, file_stream
from vla.types import Episode, Observation, instructions_at


def replay(episodes: Iterable[Episode], save: str | Path | None = None, names: Sequence[str] = ()) -> int:
    """Logs episodes of one embodiment in sequence.

    Args:
        episodes: The episodes.
        save: The file to write (.rrd). None: opens the viewer.
        names: One name per episode. If set, the episodes are shown side by side and start together.

    Returns:
        The number of episodes.

    Raises:
        InputError: without an episode, and for a file that is not .rrd.
    """
    path = None if save is None else Path(save)
    if path is not None and path.suffix != ".rrd":
        raise InputError(f"{path} is not a Rerun file: name it with the ending .rrd")
    episodes = iter(episodes)
    first = next(episodes, None)
    if first is None:
        raise InputError("there are no episodes to show")
    if path is None:
        stream = rr.RecordingStream("vla")
        stream.spawn()
        return _drive_all(stream, first.embodiment, chain([first], episodes), names)
    stream = file_stream()
    try:
        with atomic_replace(path) as partial:
            stream.save(partial)
            count = _drive_all(stream, first.embodiment, chain([first], episodes), names)
            stream.disconnect()
    except RuntimeError as error:  # Rerun's only sign of a full disk
        raise InputError(f"{path} cannot be written, is the disk full? ({error})") from error
    return count


def drive(recorder: Recorder, episode: Episode) -> None:
    """Replays an episode into `recorder`."""
    recorder.start(episode.instruction, **episode.info)
    for step in range(len(episode)):
        images = {camera: frames[step] for camera, frames in episode.images.items()}
        observation = Observation(images, episode.state[step], episode.instruction, float(episode.time[step]))
        predicted = {"chunk": episode.chunks, "points": episode.points}
        info: dict[str, Any] = {name: values[step] for name, values in predicted.items() if values is not None}
        if episode.depth:
            info["depth"] = {camera: frames[step] for camera, frames in episode.depth.items()}
        if episode.spans:
            info["subtask"] = ", ".join(instructions_at(episode.spans, step))
        recorder.step(observation, episode.action[step], **info)
    recorder.finish(episode.success)


def _drive_all(
    stream: rr.RecordingStream, embodiment: Embodiment, episodes: Iterable[Episode], names: Sequence[str]
) -> int:
    if names:
        stream.send_blueprint(blueprint({name: embodiment for name in names}))
    recorder = RerunRecorder(stream, embodiment, names[0] if names else "")
    count = 0
    for episode in episodes:
        embodiment.check(episode.embodiment)
        if names and count:
            recorder = RerunRecorder(stream, embodiment, names[count])
        drive(recorder, episode)
        count += 1
    stream.flush()
    return count

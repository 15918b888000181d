"""Finds the video file and start time of each episode's frames in a LeRobotDataset v3.

meta/episodes states them; only the lengths of the videos can contradict it. If the statements are inconsistent, and the
total number of frames in the files equals that of all episodes, the segments are computed by counting frames: the
episodes follow one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vla.datasets.formats.video_frames import count_frames
from vla.errors import InputError


@dataclass(frozen=True)
class VideoSegment:
    """The frames of an episode in a video: the file, and the time [s] of the first frame."""

    path: Path
    start: float


def resolve_segments(
    stated: Sequence[VideoSegment | None], lengths: Sequence[int], fps: float, files: Sequence[Path]
) -> tuple[list[VideoSegment | None], str]:
    """The segment of each episode, and the reason if they differ from `stated` (otherwise empty).

    Args:
        stated: the segment of each episode according to the index. None: it has no entry.
        lengths: the number of frames of each episode.
        fps: frames per second.
        files: all video files of the camera, in the order in which they were written.
    """
    counts: dict[Path, int] = {}
    for path in files:
        try:
            counts[path] = count_frames(path)
        except InputError:  # reported when an episode in this file is read
            return list(stated), ""
    fault = _contradiction(stated, lengths, fps, counts)
    if not fault:
        return list(stated), ""
    counted = _by_counting(lengths, fps, counts)
    return (list(stated), "") if counted is None else ([*counted], fault)


def is_moved(stated: VideoSegment | None, found: VideoSegment | None, fps: float) -> bool:
    """Whether an episode's frames were found in another file than stated, or more than half a frame apart."""
    if stated is None or found is None:
        return stated is not found
    return stated.path != found.path or abs(stated.start - found.start) > 0.5 / fps


def _contradiction(
    stated: Sequence[VideoSegment | None], lengths: Sequence[int], fps: float, counts: dict[Path, int]
) -> str:
    """The first inconsistency: an episode without segment, after the file's end, or overlapping the one before it."""
    ends: dict[Path, float] = {}
    slack = 0.5 / fps
    for index, (segment, length) in enumerate(zip(stated, lengths, strict=True)):
        if segment is None or segment.path not in counts:
            file = "no file" if segment is None else f"{segment.path}, which is missing"
            return f"episode {index} is stated to be in {file}"
        end = segment.start + length / fps
        if end > counts[segment.path] / fps + slack:
            return (
                f"episode {index} would end at {end:.3f} s of {segment.path}, which has {counts[segment.path]} frames"
            )
        if segment.start < ends.get(segment.path, 0.0) - slack:
            return f"episode {index} would begin within the one before it in {segment.path}"
        ends[segment.path] = end
    return ""


def _by_counting(lengths: Sequence[int], fps: float, counts: dict[Path, int]) -> list[VideoSegment] | None:
    """The segments by counting frames; None if the episodes do not fill the files exactly."""
    segments: list[VideoSegment] = []
    remaining = list(counts.items())
    used = 0
    for length in lengths:
        if remaining and used == remaining[0][1]:
            remaining.pop(0)
            used = 0
        if not remaining or used + length > remaining[0][1]:
            return None
        segments.append(VideoSegment(remaining[0][0], used / fps))
        used += length
    return segments if len(remaining) == 1 and used == remaining[0][1] else None

"""Shows episodes in Rerun: cameras, curves of state and action, predicted chunks, instruction, outcome.

| entity                         | content                                                                |
|--------------------------------|------------------------------------------------------------------------|
| cameras/<camera>               | the images, as JPEG                                                    |
| cameras/<camera>/points        | where what the instruction names is, as the data or the policy say     |
| depth/<camera>                 | distance, where the data have it                                       |
| components/<name>/state        | the component's measured value                                         |
| components/<name>/action       | the action executed                                                    |
| components/<name>/predicted/<i> | the policy's chunks, each drawn once, at the times it was meant for   |
| instruction                    | the instruction, and how it ended                                       |
| outcome                        | success, failure or unknown, as a coloured bar over the whole timeline |

Everything is on the timeline `time` [s]; episodes follow one another with a short gap. Where several are shown side
by side, each lies under a root of its own ("episode 3/cameras/front") and begins at 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import rerun as rr
import rerun.blueprint as rrb
import simplejpeg
from jaxtyping import Float, UInt8

from vla.embodiment import Embodiment
from vla.types import Observation, outcome_of

TIMELINE = "time"
GAP = 1.0
"""Seconds between episodes on the timeline."""
JPEG_QUALITY = 90
FLUSH_SECONDS = 20.0
"""[s] of the timeline that are one chunk of each entity in a file. Until the file ends Rerun keeps some 600 bytes in
memory for each of its chunks; by the default, 0.2 s, two cameras and six joints make 300,000 of them in an hour."""
CHUNK_BYTES = 4 << 20
"""Or so much, of images."""
NEVER = 1e6
"""[s]"""
BETWEEN = "between episodes"
"""The outcome where no episode is; not drawn."""

GREY, BLUE, ORANGE, GREEN, RED = [130, 130, 130], [60, 140, 255], [255, 150, 40], [60, 180, 75], [220, 60, 60]


def file_stream() -> rr.RecordingStream:
    """A stream that is to be saved to a file: what the recorder flushes is one chunk, or `CHUNK_BYTES`.

    Rerun's own rhythm is off, for each flush by size delays it: rows of numbers would wait in memory for ever.
    """
    config = rr.ChunkBatcherConfig(flush_tick=NEVER, flush_num_bytes=CHUNK_BYTES)
    return rr.RecordingStream("vla", batcher_config=config)


class RerunRecorder:
    """Logs what it is given to `stream` at once, so the live view and the offline one are the same.

    With a `root`, all entities lie under it, and whoever gave it also sends the blueprint.
    """

    def __init__(self, stream: rr.RecordingStream, embodiment: Embodiment, root: str = "") -> None:
        self.stream = stream
        self.embodiment = embodiment
        self.episodes = 0
        self._root = [root] if root else []
        self._now = self._flushed = -GAP
        self._steps = 0
        self._busy_until: list[float] = []
        self._points_shown: dict[str, np.ndarray] = {}
        if not root:
            stream.send_blueprint(blueprint({"": embodiment}))
        for kind, color in (("state", GREY), ("action", BLUE)):
            for name in getattr(embodiment, kind):
                self._log(_component(name, kind), rr.SeriesLines(colors=color, names=kind, widths=2), static=True)
        outcomes = rr.StateConfiguration(
            values=["success", "failure", "unknown", "aborted", BETWEEN],
            colors=[GREEN, RED, BLUE, GREY, GREY],
            visible=[True, True, True, True, False],
        )
        self._log(["outcome"], outcomes, static=True)

    def start(self, instruction: str, **info: Any) -> None:
        self._instruction, self._info = instruction, info
        # The last chunk may reach far beyond the end of its episode.
        self._start = max(self._now + GAP, *self._busy_until, 0.0)
        self._shift: float | None = None
        self._steps = 0
        self._chunk: np.ndarray | None = None
        self._subtasks = {self._start: ""}
        self._at(self._start)
        self._log_instruction("in progress")

    def step(self, observation: Observation, action: Float[np.ndarray, "a"], **info: Any) -> None:
        if self._shift is None:
            self._shift = self._start - observation.time
        self._at(observation.time + self._shift)
        if self._now >= self._flushed + FLUSH_SECONDS:
            self.stream.flush(timeout_sec=0)  # begun, not waited for
            self._flushed = self._now
        self._steps += 1
        points = info.get("points")
        places = {} if points is None else self.embodiment.by_camera(points)
        for camera, image in observation.images.items():
            self._log(["cameras", camera], _as_jpeg(image))
            self._log_points(camera, image, places.get(camera, np.zeros((0, 2))))
        for camera, depth in info.get("depth", {}).items():
            self._log(["depth", camera], rr.DepthImage(depth, meter=1000))
        subtask = info.get("subtask", "")
        if subtask != next(reversed(self._subtasks.values())):
            self._subtasks[self._now] = subtask
            self._log_instruction("in progress", subtask)
        self._log_values("state", observation.state)
        self._log_values("action", action)
        chunk = info.get("chunk")
        if chunk is not None and self._is_new(chunk := chunk[np.isfinite(chunk).all(axis=1)]):
            self._log_chunk(chunk)

    def finish(self, success: bool | None) -> None:
        self._end(outcome_of(success))

    def abort(self) -> None:
        """Keeps what was shown, and marks it as aborted."""
        if self._steps:
            self._end("aborted")

    def _end(self, outcome: str) -> None:
        # Written at the episode's start, so that the outcome shows wherever the cursor is in it.
        self.stream.set_time(TIMELINE, duration=self._start)
        self._log(["outcome"], rr.StateChange(state=outcome))
        for time, subtask in self._subtasks.items():
            self.stream.set_time(TIMELINE, duration=time)
            self._log_instruction(outcome, subtask)
        self._at(self._now + 1 / self.embodiment.control_hz)
        self._log(["outcome"], rr.StateChange(state=BETWEEN))
        self._log_values("state", np.full(len(self.embodiment.state), np.nan))
        self._log_values("action", np.full(len(self.embodiment.action), np.nan))
        self.episodes += 1
        self._steps = 0

    def _at(self, time: float) -> None:
        self._now = time
        self.stream.set_time(TIMELINE, duration=time)

    def _log(self, path: list[object], what: Any, static: bool = False) -> None:
        self.stream.log([*self._root, *path], what, static=static)

    def _log_instruction(self, outcome: str, subtask: str = "") -> None:
        name = self._root[0] if self._root else f"episode {self.episodes}"
        facts = [name, f"**{outcome}**", *(f"{k} {v}" for k, v in self._info.items())]
        text = f"## {self._instruction}\n\n{subtask}\n\n{' · '.join(facts)}"
        self._log(["instruction"], rr.TextDocument(text, media_type=rr.MediaType.MARKDOWN))

    def _log_values(self, kind: str, values: np.ndarray) -> None:
        for name, value in zip(getattr(self.embodiment, kind), values, strict=True):
            self._log(_component(name, kind), rr.Scalars(value))

    def _log_points(self, camera: str, image: np.ndarray, points: Float[np.ndarray, "n 2"]) -> None:
        """Rerun shows the last ones that were logged, so the same are not logged again."""
        pixels = points * (image.shape[1], image.shape[0])
        shown = self._points_shown.get(camera)
        if shown is not None and np.array_equal(shown, pixels):
            return
        self._points_shown[camera] = pixels
        self._log(["cameras", camera, "points"], rr.Points2D(pixels, colors=ORANGE, radii=rr.Radius.ui_points(6)))

    def _is_new(self, chunk: Float[np.ndarray, "k a"]) -> bool:
        """False for the rest of the chunk of the step before: that one is drawn already."""
        before, self._chunk = self._chunk, chunk
        if before is None or len(before) == 0:
            return len(chunk) > 0
        both = min(len(before) - 1, len(chunk))
        return len(chunk) > 0 and not (both == len(chunk) and np.array_equal(before[1 : both + 1], chunk))

    def _log_chunk(self, chunk: Float[np.ndarray, "k a"]) -> None:
        period = 1 / self.embodiment.control_hz
        # A point without value after the last ends the line.
        times = self._now + period * np.append(np.arange(len(chunk)), len(chunk) - 0.5)
        lane = self._free_lane(times[-1])
        for name, values in zip(self.embodiment.action, chunk.T, strict=True):
            path = rr.new_entity_path([*self._root, *_component(name, "predicted"), lane])
            columns = rr.Scalars.columns(scalars=np.append(values, np.nan))
            self.stream.send_columns(path, [rr.TimeColumn(TIMELINE, duration=times)], columns)

    def _free_lane(self, until: float) -> int:
        """Chunks that overlap in time go on lanes of their own: one entity is one line."""
        for lane, end in enumerate(self._busy_until):
            if end <= self._now:
                self._busy_until[lane] = until
                return lane
        self._busy_until.append(until)
        lane = len(self._busy_until) - 1
        style = rr.SeriesLines(colors=ORANGE, names="predicted", widths=1)
        for name in self.embodiment.action:
            self._log([*_component(name, "predicted"), lane], style, static=True)
        return lane


def blueprint(shown: Mapping[str, Embodiment]) -> rrb.Blueprint:
    """Each root's cameras and instruction at the left, a plot for each component at the right, outcomes below.

    Several roots stand side by side, each narrow: its plots below its cameras.
    """
    columns = [_layout(root, embodiment, narrow=len(shown) > 1) for root, embodiment in shown.items()]
    return rrb.Blueprint(
        columns[0] if len(columns) == 1 else rrb.Horizontal(*columns),
        rrb.TimePanel(timeline=TIMELINE, state="collapsed"),
        rrb.SelectionPanel(state="collapsed"),
        rrb.BlueprintPanel(state="collapsed"),
    )


def _layout(root: str, embodiment: Embodiment, narrow: bool) -> rrb.Vertical:
    def origin(*path: str) -> str:
        return rr.new_entity_path([*([root] if root else []), *path])

    names = dict.fromkeys((*embodiment.action, *embodiment.state))
    near = rrb.VisibleTimeRange(
        TIMELINE,
        start=rrb.TimeRangeBoundary.cursor_relative(seconds=-4),
        end=rrb.TimeRangeBoundary.cursor_relative(seconds=4),
    )
    plots = [
        rrb.TimeSeriesView(
            origin=origin("components", name),
            name=name,
            time_ranges=near,
            # The colours mean the same in every plot.
            plot_legend=rrb.PlotLegend(visible=i == 0),
        )
        for i, name in enumerate(names)
    ]
    cameras = [rrb.Spatial2DView(origin=origin("cameras", name), name=name) for name in embodiment.cameras]
    words = rrb.TextDocumentView(origin=origin("instruction"), name=root or "instruction")
    outcome = rrb.StateTimelineView(origin=origin("outcome"), name="outcome")
    if narrow:
        return rrb.Vertical(words, rrb.Horizontal(*cameras), rrb.Grid(*plots), outcome, row_shares=[2, 3, 6, 1])
    images = rrb.Vertical(words, *cameras, row_shares=[1, *(2 for _ in cameras)])
    return rrb.Vertical(rrb.Horizontal(images, rrb.Grid(*plots), column_shares=[1, 2]), outcome, row_shares=[8, 1])


def _as_jpeg(image: UInt8[np.ndarray, "h w 3"]) -> rr.EncodedImage:
    # Rerun's own compression is by Pillow, which takes eight times as long.
    coded = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=JPEG_QUALITY, colorsubsampling="420")
    return rr.EncodedImage(contents=coded, media_type="image/jpeg")


def _component(name: str, kind: str) -> list[object]:
    return ["components", name, kind]

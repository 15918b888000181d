"""Episodes as videos: MP4 for a report, GIF for a README."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from vla.common.atomic import atomic_replace
from vla.errors import InputError
from vla.types import Episode, instructions_at, outcome_of

HEIGHT = 288
BAR, RING = 36, 9
GREEN, RED, GREY, DARK, WHITE = (40, 150, 70), (190, 50, 50), (96, 100, 108), (24, 26, 30), (255, 255, 255)


def compose(episode: Episode) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Composes one video frame per step: instruction or sub-task, cameras side by side, outcome and time.

    Rings mark the objects in the instruction, if the episode has their image positions.
    """
    outcome = outcome_of(episode.success)
    color = {"success": GREEN, "failure": RED, "unknown": GREY}[outcome]
    for step, time in enumerate(episode.time - episode.time[0]):
        views = {camera: _scaled(frames[step]) for camera, frames in episode.images.items()}
        if episode.points is not None:
            for camera, points in episode.embodiment.by_camera(episode.points[step]).items():
                draw_points(views[camera], points)
        frame = Image.new("RGB", (sum(view.width for view in views.values()), HEIGHT + 2 * BAR), DARK)
        left = 0
        for view in views.values():
            frame.paste(view, (left, BAR))
            left += view.width
        draw = ImageDraw.Draw(frame)
        draw.rectangle((0, BAR + HEIGHT, frame.width, frame.height), fill=color)
        text = ", ".join(instructions_at(episode.spans, step)) or episode.instruction
        _write(draw, text, BAR / 2, frame.width)
        _write(draw, f"{outcome}   {time:.1f} s", frame.height - BAR / 2, frame.width)
        yield np.asarray(frame)


def write_video(path: str | Path, frames: Iterable[UInt8[np.ndarray, "h w 3"]], fps: float) -> None:
    """Writes a video: H.264 for .mp4, or a looping .gif. The file appears when it is complete.

    Raises:
        InputError: for another file ending, without frames, and for a frame rate that is not positive.
    """
    path = Path(path)
    writers = {".mp4": _write_mp4, ".gif": _write_gif}
    if path.suffix not in writers:
        raise InputError(f"cannot write a video to {path}: name it .mp4 or .gif")
    if fps <= 0:
        raise InputError(f"a video needs a positive frame rate, not {fps}")
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise InputError(f"there are no frames to write to {path}")
    with atomic_replace(path) as partial:
        writers[path.suffix](partial, chain([first], frames), fps)


def _write_mp4(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    import av

    with av.open(str(path.absolute()), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "18"}
        for frame in frames:
            # yuv420p subsamples colors by 2 in both directions: odd sizes repeat their last row or column.
            frame = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
            stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _write_gif(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    first, *rest = (Image.fromarray(frame).quantize(dither=Image.Dither.NONE) for frame in frames)
    first.save(path, save_all=True, append_images=rest, duration=1000 / fps, loop=0)


def _scaled(image: UInt8[np.ndarray, "h w 3"]) -> Image.Image:
    height, width = image.shape[:2]
    return Image.fromarray(image).resize((round(width * HEIGHT / height), HEIGHT), Image.Resampling.BICUBIC)


def draw_points(view: Image.Image, points: Float[np.ndarray, "n 2"]) -> None:
    """Draws a ring around each point (shares of the width and height) on the image."""
    for x, y in points * view.size:
        for radius, color in ((RING + 1, DARK), (RING, WHITE)):
            ImageDraw.Draw(view).ellipse((x - radius, y - radius, x + radius, y + radius), outline=color, width=2)


def _write(draw: ImageDraw.ImageDraw, text: str, y: float, width: int) -> None:
    """Draws text in the middle of a bar, scaled down to fit."""
    size = BAR * 0.55
    scale = min(1.0, 0.95 * width / max(1.0, draw.textlength(text, font=ImageFont.load_default(size))))
    draw.text((width / 2, y), text, WHITE, font=ImageFont.load_default(size * scale), anchor="mm")

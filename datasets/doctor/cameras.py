"""What a camera's images show of the camera: black, frozen, repeated, overexposed of a sudden, moved, upside down."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from vla.datasets.doctor.finding import Drop, DropCamera, Finding, FixImages, Steps
from vla.datasets.doctor.frames import CameraScan
from vla.datasets.doctor.recording import Recording
from vla.datasets.doctor.registration import Fit, shifts_of
from vla.datasets.doctor.robust import center, core_spread, runs
from vla.datasets.doctor.timing import share

BLANK = 8.0
"""An image whose contrast is less [grey levels] shows nothing."""
BLACK = 16.0
"""... and is black below this brightness [grey levels]."""
FROZEN_SECONDS = 0.4
"""Images that stay the same so long while the robot moves are frozen; at least three."""
MOVED = 0.1
"""The robot moves when a component of its state goes this share of what it spans."""
STILL_IMAGE = 0.02
"""Frames that differ by less than this share of their usual difference are still: a frozen image coded as video."""
LEVELS = 0.15
"""... and by less than this [grey levels]."""
NEARLY_SECONDS = 1.0
"""How long images must be still, where they are not the same: a bare table looks the same for a while."""
MOVING = 0.3
"""A step moves when its speed is this share of the median speed."""
REPEATED = 0.05
"""The share of moving steps whose image is the one before, from which on it is reported."""
JUMP = 0.15
"""A sudden change of brightness in most of the image, as a logarithm: 16 %."""
CLEAR = 8.0
"""... and in robust standard deviations of all steps."""
DARKER = 1.0
"""A whole episode brighter or darker than most, as a logarithm: almost three times."""
SHIFT = 0.031
"""A camera that is moved by less than this share of its image is not noticed: one block of `registration`."""
BETTER = (0.1, 0.25)
"""How much better the moved place must fit, as a logarithm: within these, as the other episodes show (5 deviations)."""
SEVERAL = 0.3
"""Where a camera stands elsewhere in more than this share of the episodes, it may be meant to."""
TURNED = 0.4
"""How much better an image must fit upside down, as a logarithm."""


def check_camera(data: Recording, scan: CameraScan, fits: Sequence[Fit] = ()) -> list[Finding]:
    """What one camera shows; `fits` says how each episode fits the others (`registration`), where that is known."""
    blank = blank_episodes(data, scan)
    if blank.all():
        kind = "black" if scan.level.max() < BLACK else "of one colour"
        text = f"camera {scan.camera} is {kind} in every episode"
        everything = tuple(data.numbers.tolist())
        return [Finding("blank-camera", text, everything, DropCamera(scan.camera), subject=scan.camera)]
    found = _blank(data, scan, blank)
    found += _frozen(data, scan, blank)
    found += _exposure(data, scan, blank)
    if len(fits):
        found += _moved(data, scan, fits, blank)
    return found


def blank_episodes(data: Recording, scan: CameraScan) -> Bool[np.ndarray, "e"]:
    """Where no image of the camera shows anything."""
    return np.maximum.reduceat(scan.contrast, data.bounds[:-1]) < BLANK


def _blank(data: Recording, scan: CameraScan, blank: Bool[np.ndarray, "e"]) -> list[Finding]:
    found = []
    name = scan.camera
    if blank.any():
        text = f"camera {name} shows nothing in {blank.sum()} episodes"
        found.append(Finding("blank-camera", text, tuple(data.numbers[blank].tolist()), Drop(), subject=name))
    partly = (scan.contrast < BLANK) & ~np.repeat(blank, data.lengths)
    steps = _ranges(data, partly)
    if steps:
        text = f"camera {name} shows nothing for {partly.sum()} steps in {len(steps)} episodes"
        found.append(Finding("blank-images", text, tuple(steps), Drop(), subject=name, steps=steps))
    return found


def _frozen(data: Recording, scan: CameraScan, blank: Bool[np.ndarray, "e"]) -> list[Finding]:
    name = scan.camera
    shows = (scan.contrast >= BLANK) & ~np.repeat(blank, data.lengths)
    seen = data.inside & shows[1:] & shows[:-1]
    moving = seen & (data.speed > MOVING * np.median(data.speed[seen])) if seen.any() else seen
    usual = float(np.median(scan.change[moving])) if moving.any() else 0.0
    nearly = seen & (scan.same | (scan.change < min(LEVELS, STILL_IMAGE * usual)))
    frozen = frozen_steps(seen & scan.same, moving, data.pose, round(FROZEN_SECONDS * data.hz))
    frozen |= frozen_steps(nearly, moving, data.pose, round(NEARLY_SECONDS * data.hz))
    found = []
    steps = _ranges(data, np.append(frozen, False) | np.insert(frozen, 0, False))
    if steps:
        longest = max(stop - start for ranges in steps.values() for start, stop in ranges) / data.hz
        text = f"camera {name} is frozen in {len(steps)} episodes, for up to {longest:.1f} s, while the robot moves"
        values = {"longest_s": longest}
        found.append(Finding("frozen-camera", text, tuple(steps), Drop(), subject=name, steps=steps, values=values))
    repeated = scan.same & moving & ~frozen
    ids = np.repeat(np.arange(len(data)), data.lengths)[:-1]
    counts = np.bincount(ids[repeated], minlength=len(data))
    of = np.bincount(ids[moving], minlength=len(data))
    often = (counts >= 2) & (counts > REPEATED * of)
    if often.any():
        places = _ranges(data, np.insert(repeated, 0, False) & np.repeat(often, data.lengths))
        total = share(int(counts[often].sum()), int(of[often].sum()))
        text = (
            f"camera {name} repeats the image before in {total} of the steps in which the robot moves, in "
            f"{often.sum()} episodes: it is slower than {data.hz:g} Hz, or frames were lost"
        )
        episodes = tuple(data.numbers[often].tolist())
        found.append(Finding("repeated-frames", text, episodes, Drop(), subject=name, steps=places))
    return found


def frozen_steps(
    still: Bool[np.ndarray, "m"], moving: Bool[np.ndarray, "m"], pose: Float[np.ndarray, "n p"], least: int
) -> Bool[np.ndarray, "m"]:
    """The runs of unchanged images in which the robot is seen to move for long enough, and gets somewhere."""
    frozen = np.zeros(len(still), bool)
    for start, stop in runs(still).tolist():
        gets = np.ptp(pose[start : stop + 1], axis=0).max(initial=0.0)
        if moving[start:stop].sum() >= max(3, least) and gets > MOVED:
            frozen[start:stop] = True
    return frozen


def _exposure(data: Recording, scan: CameraScan, blank: Bool[np.ndarray, "e"]) -> list[Finding]:
    found = []
    name = scan.camera
    shows = (scan.contrast >= BLANK) & ~np.repeat(blank, data.lengths)
    seen = data.inside & shows[1:] & shows[:-1]
    if not seen.any():
        return []
    limit = max(JUMP, CLEAR * core_spread(scan.gain[seen]))
    jumps = np.flatnonzero(seen & (np.abs(scan.gain) > limit))
    if len(jumps):
        places = data.by_episode(jumps, length=2)
        largest = float(np.exp(np.abs(scan.gain[jumps]).max()))
        text = (
            f"the brightness of camera {name} jumps {len(jumps)} times in {len(places)} episodes, by up to a factor "
            f"of {largest:.2g}"
        )
        values = {"factor": largest}
        found.append(Finding("exposure-jump", text, tuple(places), Drop(), "fault", name, places, values))
    levels = np.log(np.add.reduceat(scan.level, data.bounds[:-1]) / data.lengths + 1)
    usual = center(levels[~blank])
    away = levels - usual
    odd = ~blank & (np.abs(away) > max(DARKER, CLEAR * core_spread(levels[~blank])))
    if odd.any() and len(data) >= 5:
        text = f"camera {name} is far {'darker' if np.median(away[odd]) < 0 else 'brighter'} in {odd.sum()} episodes"
        found.append(Finding("exposure", text, tuple(data.numbers[odd].tolist()), Drop(), subject=name))
    return found


def _moved(data: Recording, scan: CameraScan, fits: Sequence[Fit], blank: Bool[np.ndarray, "e"]) -> list[Finding]:
    at = np.flatnonzero(~blank)
    if len(at) < 2:
        return []
    name = scan.camera
    upright, turned = (np.stack([getattr(fits[i], kind) for i in at]) for kind in ("upright", "turned"))
    best, best_turned = upright.max(axis=(1, 2)), turned.max(axis=(1, 2))
    over = np.log(np.maximum(best_turned, 1e-9) / np.maximum(best, 1e-9)) > TURNED
    found = []
    if over.any():
        text = f"the images of camera {name} fit the others upside down in {over.sum()} episodes"
        episodes = tuple(data.numbers[at[over]].tolist())
        found.append(Finding("upside-down", text, episodes, FixImages("upside_down", name), "hint", name))
    shift = shifts_of(upright, SHIFT)
    better = np.log(shift.better)
    limit = np.clip(center(better) + 5 * core_spread(better), *BETTER)
    odd = np.flatnonzero((better > limit) & ~over)
    if len(odd):
        down, right = float(np.median(shift.down[odd])), float(np.median(shift.right[odd]))
        places = len(odd) > SEVERAL * len(at)
        text = f"camera {name} stands in several places: in {len(odd)} episodes elsewhere than in most"
        if not places:
            where = _direction(down, right)
            text = f"camera {name} was moved in {len(odd)} episodes: the image is shifted by {where} of its longer side"
        values = {"down": down, "right": right}
        episodes = tuple(data.numbers[at[odd]].tolist())
        level = "hint" if places else "fault"
        found.append(Finding("camera-moved", text, episodes, Drop(), level, subject=name, values=values))
    return found


def _direction(down: float, right: float) -> str:
    parts = [
        f"{100 * abs(amount):.0f} % {words[amount > 0]}"
        for amount, words in ((right, ("left", "right")), (down, ("up", "down")))
        if abs(amount) >= 0.01
    ]
    return ", ".join(parts)


def _ranges(data: Recording, mask: Bool[np.ndarray, "n"]) -> Steps:
    """The runs of a mask over all steps, by number in the store, counted within the episode."""
    found: dict[int, tuple[tuple[int, int], ...]] = {}
    for episode in np.unique(np.repeat(np.arange(len(data)), data.lengths)[mask]).tolist():
        part = mask[data.bounds[episode] : data.bounds[episode + 1]]
        found[int(data.numbers[episode])] = tuple((start, stop) for start, stop in runs(part).tolist())
    return found

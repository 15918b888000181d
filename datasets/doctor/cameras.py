"""Faults of cameras: blank, frozen or repeated images, exposure jumps, a moved camera, images upside down."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from vla.common.plural import counted
from vla.datasets.doctor.finding import Drop, DropCamera, Finding, FixImages, Steps
from vla.datasets.doctor.frames import CameraScan
from vla.datasets.doctor.recording import Recording
from vla.datasets.doctor.registration import Fit, shifts_of
from vla.datasets.doctor.robust import center, core_spread, runs
from vla.datasets.doctor.timing import share

BLANK = 8.0
"""Contrast below which an image is blank [grey levels]."""
BLACK = 16.0
"""Brightness below which a blank image is black [grey levels]."""
FROZEN_SECONDS = 0.4
"""Duration of identical images, at least three, that is reported while the robot moves."""
MOVED = 0.1
"""Change of a state component, as a share of its range, that counts as motion of the robot."""
STILL_IMAGE = 0.02
"""Difference of frames, as a share of the usual difference, below which they are still: a frozen image in a video."""
LEVELS = 0.15
"""Upper limit of that difference [grey levels]."""
NEARLY_SECONDS = 1.0
"""Duration of still but not identical images that is reported: images of a bare table hardly change for a while."""
MOVING = 0.3
"""Speed of a moving step, as a share of the median speed."""
REPEATED = 0.05
"""Share of moving steps with repeated images that is reported."""
JUMP = 0.15
"""Reported jump of the brightness of most of the image, as a logarithm: 16 %."""
CLEAR = 8.0
"""Reported jump in robust standard deviations of all steps."""
DARKER = 1.0
"""Reported deviation of an episode's brightness from most episodes, as a logarithm: almost a factor of 3."""
SHIFT = 0.031
"""Smallest detectable shift of a camera, as a share of its image: one block of `registration`."""
BETTER = (0.1, 0.25)
"""Range of the required improvement of the fit by a shift, as a logarithm; within it, 5 deviations of all episodes."""
SEVERAL = 0.3
"""Share of episodes with a moved camera above which it may be intentional."""
TURNED = 0.4
"""Required improvement of the fit upside down, as a logarithm."""


def check_camera(data: Recording, scan: CameraScan, fits: Sequence[Fit] = ()) -> list[Finding]:
    """Finds the faults of one camera; `fits` has the fit of each episode with the others (`registration`), if known."""
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
    """The episodes in which every image of the camera is blank."""
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
        text = f"camera {name} shows nothing for {partly.sum()} steps in {counted(len(steps), 'episode')}"
        found.append(Finding("blank-images", text, tuple(steps), Drop(), subject=name, steps=steps))
    return found


def _frozen(data: Recording, scan: CameraScan, blank: Bool[np.ndarray, "e"]) -> list[Finding]:
    name = scan.camera
    visible = (scan.contrast >= BLANK) & ~np.repeat(blank, data.lengths)
    valid = data.inside & visible[1:] & visible[:-1]
    moving = valid & (data.speed > MOVING * np.median(data.speed[valid])) if valid.any() else valid
    usual = float(np.median(scan.change[moving])) if moving.any() else 0.0
    nearly = valid & (scan.same | (scan.change < min(LEVELS, STILL_IMAGE * usual)))
    frozen = frozen_steps(valid & scan.same, moving, data.pose, round(FROZEN_SECONDS * data.hz))
    frozen |= frozen_steps(nearly, moving, data.pose, round(NEARLY_SECONDS * data.hz))
    found = []
    steps = _ranges(data, np.append(frozen, False) | np.insert(frozen, 0, False))
    if steps:
        longest = max(stop - start for ranges in steps.values() for start, stop in ranges) / data.hz
        where = counted(len(steps), "episode")
        text = f"camera {name} is frozen in {where}, for up to {longest:.1f} s, while the robot moves"
        values = {"longest_s": longest}
        found.append(Finding("frozen-camera", text, tuple(steps), Drop(), subject=name, steps=steps, values=values))
    repeated = scan.same & moving & ~frozen
    ids = np.repeat(np.arange(len(data)), data.lengths)[:-1]
    counts = np.bincount(ids[repeated], minlength=len(data))
    totals = np.bincount(ids[moving], minlength=len(data))
    often = (counts >= 2) & (counts > REPEATED * totals)
    if often.any():
        steps = _ranges(data, np.insert(repeated, 0, False) & np.repeat(often, data.lengths))
        percentage = share(int(counts[often].sum()), int(totals[often].sum()))
        text = (
            f"camera {name} repeats the previous image in {percentage} of the steps in which the robot moves, in "
            f"{often.sum()} episodes: it is slower than {data.hz:g} Hz, or frames were lost"
        )
        episodes = tuple(data.numbers[often].tolist())
        found.append(Finding("repeated-frames", text, episodes, Drop(), subject=name, steps=steps))
    return found


def frozen_steps(
    still: Bool[np.ndarray, "m"], moving: Bool[np.ndarray, "m"], pose: Float[np.ndarray, "n p"], least: int
) -> Bool[np.ndarray, "m"]:
    """The runs of unchanged images with at least `least` moving steps and a sufficient change of the pose."""
    frozen = np.zeros(len(still), bool)
    for start, stop in runs(still).tolist():
        distance = np.ptp(pose[start : stop + 1], axis=0).max(initial=0.0)
        if moving[start:stop].sum() >= max(3, least) and distance > MOVED:
            frozen[start:stop] = True
    return frozen


def _exposure(data: Recording, scan: CameraScan, blank: Bool[np.ndarray, "e"]) -> list[Finding]:
    found = []
    name = scan.camera
    visible = (scan.contrast >= BLANK) & ~np.repeat(blank, data.lengths)
    valid = data.inside & visible[1:] & visible[:-1]
    if not valid.any():
        return []
    limit = max(JUMP, CLEAR * core_spread(scan.gain[valid]))
    jumps = np.flatnonzero(valid & (np.abs(scan.gain) > limit))
    if len(jumps):
        steps = data.by_episode(jumps, length=2)
        largest = float(np.exp(np.abs(scan.gain[jumps]).max()))
        text = (
            f"the brightness of camera {name} jumps {len(jumps)} times in {counted(len(steps), 'episode')}, by up to a "
            f"factor of {largest:.2g}"
        )
        values = {"factor": largest}
        found.append(Finding("exposure-jump", text, tuple(steps), Drop(), "fault", name, steps, values))
    levels = np.log(np.add.reduceat(scan.level, data.bounds[:-1]) / data.lengths + 1)
    usual = center(levels[~blank])
    away = levels - usual
    odd = ~blank & (np.abs(away) > max(DARKER, CLEAR * core_spread(levels[~blank])))
    if odd.any() and len(data) >= 5:
        text = f"camera {name} is far {'darker' if np.median(away[odd]) < 0 else 'brighter'} in {odd.sum()} episodes"
        found.append(Finding("exposure", text, tuple(data.numbers[odd].tolist()), Drop(), subject=name))
    return found


def _moved(data: Recording, scan: CameraScan, fits: Sequence[Fit], blank: Bool[np.ndarray, "e"]) -> list[Finding]:
    indices = np.flatnonzero(~blank)
    if len(indices) < 2:
        return []
    name = scan.camera
    upright, turned = (np.stack([getattr(fits[i], kind) for i in indices]) for kind in ("upright", "turned"))
    best, best_turned = upright.max(axis=(1, 2)), turned.max(axis=(1, 2))
    over = np.log(np.maximum(best_turned, 1e-9) / np.maximum(best, 1e-9)) > TURNED
    found = []
    if over.any():
        text = f"the images of camera {name} fit the others upside down in {over.sum()} episodes"
        episodes = tuple(data.numbers[indices[over]].tolist())
        found.append(Finding("upside-down", text, episodes, FixImages("upside_down", name), "hint", name))
    shift = shifts_of(upright, SHIFT)
    better = np.log(shift.better)
    limit = np.clip(center(better) + 5 * core_spread(better), *BETTER)
    odd = np.flatnonzero((better > limit) & ~over)
    if len(odd):
        down, right = float(np.median(shift.down[odd])), float(np.median(shift.right[odd]))
        several = len(odd) > SEVERAL * len(indices)
        text = f"camera {name} has several poses: in {counted(len(odd), 'episode')} it differs from most"
        if not several:
            direction = _direction(down, right)
            text = (
                f"camera {name} was moved in {counted(len(odd), 'episode')}: "
                f"the image is shifted by {direction} of its longer side"
            )
        values = {"down": down, "right": right}
        episodes = tuple(data.numbers[indices[odd]].tolist())
        level = "hint" if several else "fault"
        found.append(Finding("camera-moved", text, episodes, Drop(), level, subject=name, values=values))
    return found


def _direction(down: float, right: float) -> str:
    shifts = [
        f"{100 * abs(amount):.0f} % {names[amount > 0]}"
        for amount, names in ((right, ("left", "right")), (down, ("up", "down")))
        if abs(amount) >= 0.01
    ]
    return ", ".join(shifts)


def _ranges(data: Recording, mask: Bool[np.ndarray, "n"]) -> Steps:
    """The runs of a mask over all steps, by episode number in the store, as step ranges within the episode."""
    ranges: dict[int, tuple[tuple[int, int], ...]] = {}
    for episode in np.unique(np.repeat(np.arange(len(data)), data.lengths)[mask]).tolist():
        episode_mask = mask[data.bounds[episode] : data.bounds[episode + 1]]
        ranges[int(data.numbers[episode])] = tuple((start, stop) for start, stop in runs(episode_mask).tolist())
    return ranges

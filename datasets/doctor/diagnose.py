"""`vla data doctor`: runs all detectors on a store, and reports the findings as text, JSON and a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vla.common.plural import counted
from vla.datasets.doctor.cameras import check_camera
from vla.datasets.doctor.colors import check_colors
from vla.datasets.doctor.components import check_components
from vla.datasets.doctor.finding import Diagnosis
from vla.datasets.doctor.fixes import Fixes, steps_text
from vla.datasets.doctor.frames import CameraScan, read_shots, scan_camera
from vla.datasets.doctor.idle import check_idle
from vla.datasets.doctor.motion import check_motion
from vla.datasets.doctor.outliers import check_outliers
from vla.datasets.doctor.recording import Recording
from vla.datasets.doctor.registration import FEWEST, Fit, Template, reference_episodes
from vla.datasets.doctor.skipped import check_skipped
from vla.datasets.doctor.timing import check_timing
from vla.datasets.doctor.tracking import check_tracking
from vla.datasets.episode_selection import episodes_of, named
from vla.datasets.episodes import EpisodeStore
from vla.errors import InputError

CHECKS = (
    check_idle,
    check_timing,
    check_skipped,
    check_tracking,
    check_motion,
    check_components,
    check_outliers,
)
MAX_EPISODES = 4
"""Maximum number of episodes whose steps are printed."""


def doctor(
    path: str, *, episodes: str | None = None, images: bool = True, html: str | None = None, json: str | None = None
) -> None:
    """Prints the faults of a store's episodes, their steps, and the commands that repair them.

    Args:
        path: The store.
        episodes: Indices and ranges of the episodes to check: "3,7,9:12"; None: all.
        images: Whether to check camera images; without them the check takes seconds for a thousand episodes.
        html: File for a page with pictures; replaced if it exists.
        json: File for the findings as JSON; replaced if it exists.

    Raises:
        InputError: There is no readable store at `path`, or it is empty.
    """
    with EpisodeStore.open(path) as store:
        if not len(store):
            raise InputError(f"{path} has no episodes to check: record some first")
        selected = range(len(store)) if episodes is None else episodes_of(episodes, len(store))
        diagnosis = diagnose(store, selected, images)
        lengths = {index: store.records[index].length for index in range(len(store))}
        fixes = Fixes(path, lengths, store.embodiment.cameras, store.embodiment.action)
        print("\n".join(describe(path, diagnosis, fixes)))
        if json is not None:
            from vla.common.atomic import write_json

            write_json(Path(json), to_dict(path, diagnosis, fixes))
            print(f"wrote {json}")
        if html is not None:
            from vla.datasets.doctor.doctor_report import write_doctor_page

            print(f"wrote {write_doctor_page(store, diagnosis, fixes, html)}")


def diagnose(store: EpisodeStore, episodes: Sequence[int], images: bool = True) -> Diagnosis:
    """Runs all detectors on these episodes, with a progress bar while images are decoded."""
    data = Recording.of(store, episodes)
    findings = [finding for check in CHECKS for finding in check(data)]
    scans = []
    cameras = store.embodiment.cameras if images else ()
    total = len(cameras) * len(data)
    with tqdm(total=total, desc="images", unit="episode", leave=False, disable=not total) as bar:
        for camera in cameras:
            fits: list[Fit] = []
            scan = _scan(store, data, camera, bar.update, fits)
            findings += check_camera(data, scan, fits)
            scans.append(scan)
    findings += check_colors(data, scans)
    findings.sort(key=lambda finding: finding.level != "fault")
    return Diagnosis(data, tuple(findings), tuple(scans))


def _scan(store: EpisodeStore, data: Recording, camera: str, advance: Any, fits: list[Fit]) -> CameraScan:
    if len(data) < FEWEST:
        return scan_camera(store, data, camera, advance)
    template = Template(data)
    for episode in reference_episodes(len(data)):
        template.add(episode, *read_shots(store, data, camera, episode))
    return scan_camera(store, data, camera, advance, lambda *shots: fits.append(template.fit(*shots)))


def describe(path: str, diagnosis: Diagnosis, fixes: Fixes) -> Iterator[str]:
    """The printed lines of the report."""
    data, findings = diagnosis.data, diagnosis.findings
    faults = sum(finding.level == "fault" for finding in findings)
    found = ", ".join((counted(faults, "fault"), counted(len(findings) - faults, "hint"))) if findings else "nothing"
    checked = f"{counted(len(data), 'episode')}, {counted(len(data.time), 'step')}"
    cameras = counted(len(diagnosis.scans), "camera")
    yield f"{path}: {checked}, {cameras}: {found} found"
    for finding in findings:
        yield f"  {finding.level} {finding.check}: {finding.text}"
        if len(finding.episodes) < len(data):
            yield f"    in {named(finding.episodes)}"
        if finding.steps:
            yield f"    steps {steps_text(finding.steps, MAX_EPISODES)}"
        yield f"    {fixes.of(finding)}"
    if (command := fixes.together(findings)) is not None:
        yield f"  one command for all removals and cuts: {command}"


def to_dict(path: str, diagnosis: Diagnosis, fixes: Fixes) -> dict[str, Any]:
    """The findings as JSON values."""
    return {
        "store": path,
        "episodes": len(diagnosis.data),
        "steps": len(diagnosis.data.time),
        "cameras": [scan.camera for scan in diagnosis.scans],
        "faults": sum(finding.level == "fault" for finding in diagnosis.findings),
        "hints": sum(finding.level == "hint" for finding in diagnosis.findings),
        "findings": [
            {
                "check": finding.check,
                "level": finding.level,
                "subject": finding.subject,
                "text": finding.text,
                "episodes": list(finding.episodes),
                "steps": {str(episode): [list(pair) for pair in ranges] for episode, ranges in finding.steps.items()},
                "values": dict(finding.values),
                "fix": fixes.of(finding),
            }
            for finding in diagnosis.findings
        ],
        "fix": fixes.together(diagnosis.findings),
    }

"""`vla doctor`: each lack is named with its remedy, and only a needed one fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vla.commands import doctor
from vla.commands.doctor import Check


def test_lacking_something_optional_still_passes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "checks", lambda: iter([Check("gpu", False, "no CUDA device", "get one")]))
    doctor.doctor()
    shown = capsys.readouterr().out
    assert "missing" in shown and "get one" in shown and "can run" in shown


def test_lacking_something_needed_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [Check("rendering", False, "no EGL", "apt install libegl1", needed=True), Check("disk", True, "9 GB free")]
    monkeypatch.setattr(doctor, "checks", lambda: iter(found))
    with pytest.raises(SystemExit) as ended:
        doctor.doctor()
    assert ended.value.code == 1
    assert "apt install libegl1" in capsys.readouterr().out


def test_absent_package_is_named() -> None:
    check = doctor.packages(("numpy", "no-such-package-here"))
    assert not check.ok and check.found == "no-such-package-here"


def test_port_without_permission_says_which_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = tmp_path / "ttyACM0"
    port.touch()
    pattern = (str(tmp_path / "ttyACM*"),)
    assert doctor.ports(pattern).ok
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    check = doctor.ports(pattern)
    assert not check.ok and str(port) in check.found and "dialout" in check.fix


def test_broken_renderer_is_reported_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "no-such-backend")
    check = doctor.rendering()
    assert not check.ok and check.needed and "no-such-backend" in check.found


def test_full_disk_is_a_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DISK_GB", float("inf"))
    check = doctor.disk()
    assert not check.ok and check.needed

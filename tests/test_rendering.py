"""MUJOCO_GL that this machine cannot draw with is one line that names it, in every command that draws."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import mujoco
import pytest

from vla.commands import cli
from vla.common import rendering
from vla.common.rendering import check_rendering, make_renderer
from vla.errors import InputError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="on other systems MuJoCo draws in its own way")


@pytest.fixture
def gl(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "PYOPENGL_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rendering, "_loads", lambda library: "EGL" in library)
    return monkeypatch


@pytest.mark.parametrize(
    ("given", "cure"),
    [
        ({"MUJOCO_GL": "glfw"}, "set MUJOCO_GL=egl"),
        ({"MUJOCO_GL": "glx"}, "set MUJOCO_GL=egl"),
        ({"MUJOCO_GL": "on"}, "set MUJOCO_GL=egl"),
        ({"MUJOCO_GL": "glfw", "DISPLAY": ":99"}, "set MUJOCO_GL=egl"),
        ({"MUJOCO_GL": "osmesa"}, "apt install libosmesa6; or set MUJOCO_GL=egl"),
        ({"MUJOCO_GL": "vulkan"}, "set it to egl or osmesa"),
        ({"MUJOCO_GL": "off"}, "unset it"),
        ({"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "osmesa"}, "unset PYOPENGL_PLATFORM"),
    ],
)
def test_what_cannot_draw_is_named_with_its_cure(given: dict[str, str], cure: str, gl: pytest.MonkeyPatch) -> None:
    for name, value in given.items():
        gl.setenv(name, value)
    with pytest.raises(InputError) as raised:
        check_rendering()
    assert f"MUJOCO_GL={given['MUJOCO_GL']}" in str(raised.value) and cure in str(raised.value)


@pytest.mark.parametrize("value", ["egl", "EGL", "", None])
def test_egl_is_the_default_and_draws(value: str | None, gl: pytest.MonkeyPatch) -> None:
    gl.delenv("MUJOCO_GL") if value is None else gl.setenv("MUJOCO_GL", value)
    check_rendering()


def test_a_machine_without_egl_is_told_of_osmesa(gl: pytest.MonkeyPatch) -> None:
    gl.setattr(rendering, "_loads", lambda _: False)
    gl.delenv("MUJOCO_GL")
    with pytest.raises(InputError, match="libEGL.so.1 is not on this machine.*set MUJOCO_GL=osmesa"):
        check_rendering()


def test_libraries_are_looked_for_where_the_linker_does() -> None:
    assert rendering._loads("libc.so.6") and not rendering._loads("libNoSuchThing.so.1")
    assert isinstance(ctypes.CDLL("libc.so.6"), ctypes.CDLL)


@pytest.mark.parametrize(
    "command",
    [
        ["record", "task=pick", "episodes=1"],
        ["record", "robot=sim", "teleop=script", "out=a.zarr"],
        ["record", "task=scenes", "episodes=1"],
        ["eval", "policy=expert"],
        ["play", "device=script", "script=../a.txt"],
        ["deploy", "policy=hold"],
        ["so101-sim"],
        ["view", "task=pick", "--save", "a.png"],
        ["probe", "policy=nano"],
        ["demo"],
    ],
)
def test_every_command_that_draws_says_so_in_one_line(
    command: list[str], gl: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "work").mkdir()
    gl.chdir(tmp_path / "work")
    gl.setenv("MUJOCO_GL", "glfw")
    assert cli.main(command) == 2
    shown = capsys.readouterr()
    assert "MUJOCO_GL=glfw" in shown.err and "set MUJOCO_GL=egl" in shown.err and shown.err.count("\n") == 1
    assert list((tmp_path / "work").iterdir()) == []


def test_a_driver_that_fails_is_one_line(gl: pytest.MonkeyPatch) -> None:
    class Half:
        def __del__(self) -> None:
            raise AttributeError("half made")

    def fail(*_: Any) -> None:
        half = Half()
        raise RuntimeError(f"no device\nof {type(half).__name__}")

    gl.setattr(mujoco, "Renderer", fail)
    hook = sys.unraisablehook
    model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
    with pytest.raises(InputError, match="the driver fails: no device of Half"):
        make_renderer(model, 8, 8)
    assert sys.unraisablehook is hook


def test_the_shell_sees_one_line(gl: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gl.setenv("MUJOCO_GL", "glfw")
    command = [sys.executable, "-m", "vla", "record", "task=pick", "episodes=1"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 2 and ran.stdout == "" and ran.stderr.count("\n") == 1 and "MUJOCO_GL=glfw" in ran.stderr

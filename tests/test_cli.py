"""The command line: what it prints, what reaches a command, and how mistakes end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.commands import cli, options
from vla.errors import InputError

Calls = list[dict[str, Any]]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, Callable[..., object]], None]:
    """Puts a function in the place of a command's own; the working folder is an empty one."""
    monkeypatch.chdir(tmp_path)

    def put(command: str, function: Callable[..., object]) -> None:
        name = f"stub_of_{command}"
        module = ModuleType(name)
        module.__dict__["run"] = function
        monkeypatch.setitem(sys.modules, name, module)
        kept = cli.COMMANDS[command]
        changed = cli.Command(kept.summary, f"{name}:run", kept.description, kept.examples, kept.positional)
        monkeypatch.setitem(cli.COMMANDS, command, changed)

    return put


@pytest.fixture
def calls(stub: Callable[[str, Callable[..., object]], None]) -> Calls:
    """What reaches `record`, `train`, `eval` and `view`."""
    seen: Calls = []

    def record(task: str, episodes: int, out: str, seed: int, **rest: object) -> None:
        seen.append({"task": task, "episodes": episodes, "out": out, "seed": seed})

    def view(path: str, save: str | None, **rest: object) -> None:
        seen.append({"path": path, "save": save})

    def anything(**given: object) -> None:
        seen.append(given)

    stub("record", record)
    stub("view", view)
    stub("train", anything)
    stub("eval", anything)
    return seen


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name}" in shown and command.summary in shown for name, command in cli.COMMANDS.items())


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command_shows_its_examples_and_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(example in shown for example in cli.COMMANDS[name].examples)
    with options.hydra.initialize_config_module(options.CONFIGS, version_base="1.3"):
        keys = list(options.hydra.compose(name))
    assert all(f"\n  {key}:" in shown for key in keys)


def test_overrides_reach_the_command_as_keyword_arguments(calls: Calls) -> None:
    assert cli.main(["record", "task=place", "episodes=3", "--seed", "7", "--out=x.zarr"]) == 0
    assert calls == [{"task": "place", "episodes": 3, "out": "x.zarr", "seed": 7}]


def test_nested_override_arrives_as_plain_python(calls: Calls) -> None:
    assert cli.main(["train", "mixture.vqa=0.3"]) == 0
    assert type(calls[0]["mixture"]) is dict
    assert calls[0]["mixture"]["vqa"] == 0.3


def test_seed_range_stays_text(calls: Calls) -> None:
    assert cli.main(["eval", "seeds=10:20"]) == 0
    assert calls[0]["seeds"] == "10:20"


def test_swap_point_arrives_built(calls: Calls) -> None:
    assert cli.main(["train", "+extra={_target_: fractions.Fraction, numerator: 2, denominator: 3}"]) == 0
    assert str(calls[0]["extra"]) == "2/3"


@given(path=st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0"), min_size=1))
def test_any_path_can_be_a_positional_argument(path: str) -> None:
    path = f"/{path}"
    overrides, _ = cli.parse("view", [path])
    assert options.OverridesParser.create().parse_overrides(overrides)[0].value() == path


def test_multirun_runs_every_combination(calls: Calls) -> None:
    assert cli.main(["record", "-m", "task=pick,place", "seed=1,2", "out='${task}-${seed}.zarr'"]) == 0
    assert [(call["task"], call["seed"], call["out"]) for call in calls] == [
        (task, seed, f"{task}-{seed}.zarr") for task in ("pick", "place") for seed in (1, 2)
    ]


def test_cfg_prints_the_options_and_runs_nothing(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["record", "task=push", "--cfg"]) == 0
    assert "task: push" in capsys.readouterr().out
    assert calls == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["recrod"], "recrod"),
        (["record", "episode=3"], "did you mean 'episodes'"),
        (["record", "episodes=many"], "whole number"),
        (["record", "episodes=2.5"], "episodes=2.5"),
        (["record", "episodes=null"], "episodes=null"),
        (["train", "mixture.robots=1"], "did you mean 'mixture.robot'"),
        (["train", "stge=lora"], "did you mean 'stage'"),  # a group of files
        (["train", "plan.lr=fast"], "plan.lr=fast"),
        (["record", "task=(("], "task=(("),
        (["record", "task=pick,place"], "-m"),
        (["record", "-m", "seed=1,2"], "outputs/pick.zarr"),
        (["record", "out='${nowhere}'"], "nowhere"),
        (["record", "pick"], "pick"),
        (["record", "-x"], "-x"),
        (["record", "--task"], "--task"),
        (["view", "one.zarr", "two.zarr"], "two.zarr"),
        (["view", "one.zarr", "+speed=2"], "speed"),
        (["train", "+extra={_target_: vla.nowhere.Thing}"], "vla.nowhere.Thing"),
        (["train", "+extra={_target_: fractions.Fraction, top: 1}"], "top"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], named: str, stub: Callable[..., None], calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    def view(path: str, episodes: str, side_by_side: bool, save: str, task: str, seed: int) -> None:
        raise AssertionError("ran")

    stub("view", view)
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert named in shown.err
    assert shown.err.startswith("vla") and shown.err.count("\n") == 1
    assert shown.out == "" and calls == []
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("eval seeds=4", "seeds must be FIRST:END"),
        ("eval seeds=20:10", "seeds must be FIRST:END"),
        ("eval axes=[lite]", "unknown axis lite (did you mean 'light'?)"),
        ("eval axes_report=[object,lite]", "unknown axis lite (did you mean 'light'?)"),
        ("eval task=pcik", "unknown task 'pcik' (did you mean 'pick'?)"),
        ("data info demos.zar", "no episode store at demos.zar (did you mean 'demos.zarr'?)"),
        ("data inof demos.zarr", "unknown action 'inof' (did you mean 'info'?)"),
        ("view demos.zar", "cannot read demos.zar: nothing is there (did you mean 'demos.zarr'?)"),
    ],
)
def test_a_mistake_is_found_before_anything_slow_is_imported(arguments: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "demos.zarr").mkdir()
    slow = "{'torch', 'scipy', 'rerun', 'matplotlib'}"
    code = (
        f"import sys; from vla.commands import cli; code = cli.main(); sys.exit(code + len({slow} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, *arguments.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr and done.stderr.count("\n") == 1


def test_bad_input_found_by_a_command_is_one_line(
    stub: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def doctor() -> None:
        raise InputError("the checkpoint outputs/x does not exist")

    stub("doctor", doctor)
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == "vla doctor: the checkpoint outputs/x does not exist\n"


def test_interrupt_is_one_line_and_exit_code_130(stub: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    def doctor() -> None:
        raise KeyboardInterrupt

    stub("doctor", doctor)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "vla doctor: interrupted\n"


def test_our_own_bug_keeps_its_traceback(stub: Callable[..., None]) -> None:
    def doctor() -> None:
        raise ZeroDivisionError

    stub("doctor", doctor)
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m vla.commands.cli --help | head -1"
    shown = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert shown.stderr == "" and shown.stdout.count("\n") == 1

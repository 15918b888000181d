"""What is typed is what a command gets: paths and texts of any kind, and the names that were meant."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from vla.commands import cli, options
from vla.commands.arguments import parse, quoted

ODD = st.text(
    st.one_of(
        st.sampled_from("'\"\\${}[]()=,:#~ \t\né-@*+&|%/."), st.characters(codec="utf-8", exclude_characters="\0")
    ),
    min_size=1,
)


def value(command: str, *arguments: str, key: str) -> Any:
    """What the function of a command gets as the option `key`."""
    overrides, _ = parse(command, arguments)
    found: dict[str, Any] = {}
    options.bind(lambda **given: found.update(given), options.compose(command, overrides))()
    return found[key]


@settings(max_examples=100)
@given(text=ODD)
def test_any_text_survives_hydras_grammar(text: str) -> None:
    assume("${" not in text and text != "???")
    (override,) = options.OverridesParser.create().parse_overrides([f"out={quoted(text)}"])
    config = OmegaConf.create({"out": ""})
    OmegaConf.update(config, "out", override.value())
    assert OmegaConf.to_container(config, resolve=True) == {"out": text}


@settings(max_examples=10)
@given(text=ODD, option=st.sampled_from([("train", "out"), ("eval", "policy"), ("train", "data"), ("view", "save")]))
def test_any_path_is_taken_as_it_is_typed(text: str, option: tuple[str, str]) -> None:
    command, key = option
    assume(text not in ("null", "???") and not text.startswith(("~", "{", "lerobot:")) and "${" not in text)
    assert value(command, f"{key}={text}", key=key) == text


@settings(max_examples=10)
@given(text=ODD)
def test_any_instruction_is_taken_as_it_is_typed(text: str) -> None:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    assume(text not in ("null", "???") and not quoted and "${" not in text)
    assert value("deploy", "policy=hold", f"instruction={text}", key="instruction") == text


@pytest.mark.parametrize(
    "path",
    ["outputs/lr=0.1/best", "outputs/é", "run (1)", "run#2", "a,b", "a b", "x:y", "$HOME", "a${", "3", "true", "-x"]
    + ["C:\\runs\\best", "[a]", "it's", '"quoted"', "1e3", "a\\${b}"],
)
def test_paths_as_users_name_them(path: str) -> None:
    literal = path.replace("\\$", "$")
    assert value("eval", f"policy={path}", key="policy") == literal
    assert value("eval", "--policy", path, key="policy") == literal
    assert value("train", f"vqa.vqa={path}", key="vqa") == {"vqa": literal}


def test_the_home_folder_stands_for_the_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/elsewhere")
    assert value("eval", "policy=~/runs/best", key="policy") == "/elsewhere/runs/best"
    assert value("eval", "policy=lerobot:~/act", key="policy") == "lerobot:/elsewhere/act"
    assert value("view", "~/a.zarr", key="path") == "/elsewhere/a.zarr"
    assert value("train", 'data={a: "~/a.zarr", b: b.zarr}', key="data") == {"a": "/elsewhere/a.zarr", "b": "b.zarr"}
    assert value("eval", 'merge=["~/a", "b~"]', key="merge") == ["/elsewhere/a", "b~"]
    assert value("deploy", "policy=hold", "instruction=~ 3 cm up", key="instruction") == "~ 3 cm up"


def test_a_path_without_its_key_may_hold_an_equals_sign() -> None:
    assert value("compare", "outputs/lr=0.1/a", "b", key="a") == "outputs/lr=0.1/a"
    assert value("data", "merge", "lr=1/a.zarr", "lr=2/b.zarr", "out=c", key="others") == ["lr=2/b.zarr"]
    assert value("compare", "b=x", "a=y", key="b") == "x"


def test_null_and_references_keep_their_meaning() -> None:
    assert value("train", "data=null", key="data") is None
    assert value("eval", "out=runs/${task}-${policy}", "task=place", key="out") == "runs/place-expert"


def test_lists_and_mappings_keep_their_grammar() -> None:
    assert value("eval", "merge=[a,b]", key="merge") == ["a", "b"]
    assert value("train", "backbone={vision: v, language: l}", key="backbone") == {"vision": "v", "language": "l"}


def test_a_sweep_needs_its_flag_and_keeps_its_grammar() -> None:
    overrides, _ = parse("eval", ["-m", "policy=a,b", "out='x-${policy}'"])
    assert len(options.sweep("eval", overrides)) == 2
    (one,) = options.sweep("eval", parse("eval", ["-m", "policy=run (1)"])[0])
    assert options.compose("eval", one).policy == "run (1)"


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["trian"], "train"),
        (["train", "hed=flow"], "head"),
        (["train", "+hed=flow"], "head"),
        (["train", "head=flo"], "flow"),
        (["train", "stage=cotrian"], "cotrain"),
        (["train", "recipe=vlm-nan"], "vlm-nano"),
        (["train", "++plan.freez=[]"], "freeze"),
        (["train", "task=pik"], "pick"),
        (["train", "data=null", "mixture.vqa=0", "backbone=nanoo"], "nano"),
        (["train", "data=null", "mixture.vqa=0", "backbone=smolvlm-2"], "smolvlm2"),
        (["record", "task=pik"], "pick"),
        (["record", "codec=wepb"], "webp"),
        (["eval", "task=drawer-opn"], "drawer-open"),
        (["eval", "phrasing=held"], "heldout"),
        (["eval", "policy=exprt"], "expert"),
        (["eval", "policy=runs/trian"], "runs/train"),
        (["play", "task=pik"], "pick"),
        (["deploy", "robot=so1O1", "policy=hold"], "so101"),
        (["deploy", "policy=hold", "robot.task=stak"], "stack"),
        (["probe", "policy=nanoo"], "nano"),
        (["models", "pixtrl"], "pixtral"),
        (["bench", "heds"], "heads"),
        (["benchmark", "popee", "data=x", "policy=nano"], "pope"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(
    arguments: list[str],
    meant: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "train").mkdir(parents=True)
    assert cli.main(arguments) == 2
    shown = capsys.readouterr().err
    assert f"did you mean '{meant}'?" in shown and shown.count("\n") == 1


ABSENT = [
    (["train"], "vla record task=pick"),
    (["train", "data=a.zarr"], "there is no store a.zarr"),
    (["train", "data={x: a.zarr}"], "there is no store a.zarr"),
    (["train", "data=null"], "task=scenes"),
    (["train", "data=set"], "vla convert set outputs/set.zarr"),
    (["train", "data=null", "mixture.vqa=0", "backbone=outputs/none"], "no backbone 'outputs/none'"),
    (["eval", "policy=outputs/none"], "no policy 'outputs/none'"),
    (["eval", "policy=outputs"], "config.json is missing"),
    (["deploy", "policy=outputs/none"], "no policy"),
    (["serve", "policy=outputs/none"], "no policy"),
    (["push", "policy=outputs/none", "repo=a/b"], "there is no folder"),
    (["train-tokenizer", "data=a.zarr"], "there is no store a.zarr"),
    (["benchmark", "pope", "data=none", "policy=nano"], "does not exist"),
    (["benchmark", "pope", "data=.", "policy=nano", "limit=ten"], "limit=ten: takes a whole number or null"),
]
CODE = """
import json, sys
from vla.commands.cli import main
print([main(arguments) for arguments in json.loads(sys.argv[1])], "torch" in sys.modules)
"""


def test_what_is_not_there_is_said_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "set" / "meta").mkdir(parents=True)
    (tmp_path / "set" / "meta" / "info.json").write_text("{}")
    given = json.dumps([arguments for arguments, _ in ABSENT])
    ran = subprocess.run([sys.executable, "-c", CODE, given], cwd=tmp_path, capture_output=True, text=True)
    assert ran.stdout.strip() == f"{[2] * len(ABSENT)} False", ran.stderr
    for line, (_, said) in zip(ran.stderr.splitlines(), ABSENT, strict=True):
        assert said in line


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ('{"joint[0]": delta, x: absolute}', {"joint[0]": "delta", "x": "absolute"}),
        ("{'a b (deg)': delta,\"c:d\" : force}", {"a b (deg)": "delta", "c:d": "force"}),
    ],
)
def test_the_keys_of_a_mapping_may_be_quoted(typed: str, expected: dict[str, str]) -> None:
    assert value("convert", "a", "b", f"actions={typed}", key="actions") == expected


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("actions=[delta]", "actions=['delta']: takes text or a mapping, such as {A: B} or null"),
        ("actions=3", "actions=3: takes text"),
        ("grippers=jaw", "grippers=jaw: takes a list, such as [A,B] or null"),
        ("rotations=euler_xyz", "takes a mapping"),
        ("rotations={euler_xyz: roll}", "takes a mapping"),
        ("bgr=3", "bgr=3: takes true or false or text or a list"),
        ("bgr={front: false}", "takes true or false or text or a list"),
        ("flip=[vertical]", "takes text or a mapping"),
        ("rename=[a]", "takes a mapping"),
    ],
)
def test_a_value_of_another_kind_is_named(
    option: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["convert", str(tmp_path), str(tmp_path / "a.zarr"), option]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_mapping_that_is_empty_by_default_takes_any_key() -> None:
    assert value("train", "kinds={vqa: [caption, detail]}", key="kinds") == {"vqa": ["caption", "detail"]}

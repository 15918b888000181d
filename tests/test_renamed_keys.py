"""What earlier versions wrote, and the options they took, are read under their present names."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from test_run import options, stores

from vla.commands import cli
from vla.commands.arguments import parse
from vla.commands.options import bind, compose
from vla.common.renamed_keys import WEIGHTS, current_override, current_targets, current_weight
from vla.evaluation.rollouts.result_store import check_folder
from vla.models.action_heads.build import stored_settings
from vla.models.vla import VLA
from vla.training.run import train
from vla.training.run_options import RunOptions
from vla.types import Episode


@pytest.mark.parametrize(
    ("command", "before", "now"),
    [
        ("eval", "execute=2", "n_action_steps=2"),
        ("eval", "frames=asked", "render=on_inference"),
        ("eval", "guard=false", "safety_filter=false"),
        ("deploy", "loop.ttl=1.0", "loop.max_observation_age_s=1.0"),
        ("deploy", "loop={ttl: 1.0, first: 3}", "loop={max_observation_age_s: 1.0, first_inference_timeout_s: 3}"),
        ("deploy", "loop.end=relax", "loop.end=disable_torque"),
        ("robot", "action=relax", "action=disable_torque"),
        ("train", "head={kind: flow, insulate: true}", "head={kind: flow, knowledge_insulation: true}"),
        ("train", "+head.continues=true", "+head.rtc_training=true"),
        ("train", "retain.counting.margin=0.02", "regression_gates.counting.margin=0.02"),
        ("train", "plan.lr_scales.vision=0.1", "plan.lr_multipliers.vision=0.1"),
        ("train", "~state_as", "~state_encoding"),
        ("train", "statistics=estimate", "statistics=new"),
    ],
)
def test_an_earlier_option_is_taken_and_reported(command: str, before: str, now: str) -> None:
    found, warning = current_override(command, before)
    assert found == now and " is now " in warning
    assert current_override(command, now) == (now, "")


def test_the_command_line_names_the_present_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "--execute", "2", "execute=4", "--cfg"]) == 0
    printed = capsys.readouterr()
    assert "n_action_steps: 4" in printed.out
    assert "vla eval: execute is now n_action_steps: the earlier name will be removed" in printed.err
    assert cli.main(["robot", "relax", "robot.port=none", "--cfg"]) == 0
    printed = capsys.readouterr()
    assert "action: disable_torque" in printed.out
    assert "vla robot: action=relax is now action=disable_torque: the earlier name will be removed" in printed.err


def test_an_earlier_target_of_a_configuration_is_found() -> None:
    config = compose("deploy", ["policy=hold", "++robot._target_=vla.control.robots.sim.SimRobot"])
    assert bind(lambda **values: values["robot"], config)().__class__.__name__ == "SimRobot"
    nested = {"a": [{"limits": {"_target_": "vla.control.limits.Limits"}}]}
    assert current_targets(nested) == {"a": [{"limits": {"_target_": "vla.robots.limits.Limits"}}]}


def test_settings_of_an_earlier_head_and_evaluation(tmp_path: Path) -> None:
    settings = {"kind": "flow", "insulate": True, "continues": True, "expert": {}}
    assert stored_settings(settings) == {
        "kind": "flow",
        "knowledge_insulation": True,
        "rtc_training": True,
        "expert": {},
    }
    (tmp_path / "settings.json").write_text(json.dumps({"execute": 3, "guard": True}))
    check_folder(tmp_path, {"n_action_steps": 3, "safety_filter": True})


def earlier_weight(name: str) -> str:
    for old, new in WEIGHTS:
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def rename_tensors(file: Path) -> None:
    """Writes the tensors of a file under the names of earlier versions."""
    with safe_open(file, "pt") as opened:
        metadata, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118

    def earlier(name: str) -> str:
        kind, separator, rest = name.partition("/")
        return f"{kind}{separator}{earlier_weight(rest)}" if separator else earlier_weight(name)

    renamed = {earlier(name): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    # Of the training state, it also holds where each tensor lies.
    for key, text in (metadata or {}).items():
        with contextlib.suppress(json.JSONDecodeError):
            if isinstance(described := json.loads(text), dict):
                metadata[key] = json.dumps({earlier(name): value for name, value in described.items()})
    save_file(renamed, file, metadata)


@pytest.mark.parametrize("head", ["parallel", pytest.param("flow", marks=pytest.mark.slow)])
def test_a_run_of_an_earlier_version_goes_on(make_episode: type[Episode], tmp_path: Path, head: str) -> None:
    data = {"robot": stores(make_episode, tmp_path)["first"]}
    plan = {"steps": 1, "batch_size": 3, "precision": "fp32"}
    run = train(RunOptions(**options(data, tmp_path / "a", head=head, plan=plan))).best
    before = VLA.load(run).state_dict()
    for file in (run / "model.safetensors", *(run / "training").glob("*.safetensors")):
        rename_tensors(file)
    progress = json.loads((run / "training.json").read_text())
    progress["trained"] = {earlier_weight(name): kind for name, kind in progress["trained"].items()}
    progress["settings"]["state_as"] = progress["settings"].pop("state_encoding", "numbers")
    progress["settings"]["plan"]["lr_scales"] = progress["settings"]["plan"].pop("lr_multipliers")
    (run / "training.json").write_text(json.dumps(progress))
    assert all((VLA.load(run).state_dict()[name] == tensor).all() for name, tensor in before.items())
    assert all(current_weight(earlier_weight(name)) == name for name in before)
    assert train(RunOptions(**options(data, tmp_path / "a", head=head, plan=plan | {"steps": 2}))).step == 2


def test_an_earlier_value_and_path_are_taken_in_every_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "--frames", "asked", "--cfg"]) == 0
    assert "render: on_inference" in capsys.readouterr().out
    assert parse("train", ["retain.docvqa.data=a dir"]) == (["regression_gates.docvqa.data='a dir'"], frozenset())

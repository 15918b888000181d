"""Released robot policies as models of this project, against LeRobot's own classes on small random weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TOY, write_store
from lerobot_policies import (
    ACTION,
    BODY,
    HORIZON,
    LeRobotReference,
    change,
    check_export,
    fixed_draws,
    noise,
    observation,
    reference,
    save_as_openpi,
)
from PIL import Image

from vla.commands.cli import main
from vla.errors import InputError
from vla.models.action_heads import flow
from vla.models.preprocessing.frames import FloorPad
from vla.models.preprocessing.view import draw
from vla.models.released import pi
from vla.models.released.lerobot_export import export_lerobot
from vla.models.released.registry import is_policy, open_policy, policy_defaults
from vla.models.vla import VLA
from vla.policies.vla import VlaPolicy
from vla.types import Episode, Example

KINDS = ("pi0", "pi05", "smolvla")
Make = Callable[..., LeRobotReference]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    return lambda kind, **options: reference(kind, tmp_path / kind, monkeypatch, **options)


def model_of(theirs: LeRobotReference) -> VLA:
    policy = open_policy(theirs.folder)
    return policy.model([policy.robot(BODY)])


@pytest.mark.parametrize("engine", [None, "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_in_robot_units_are_those_of_the_original(make: Make, kind: str, engine: str | None) -> None:
    theirs = make(kind)
    policy = VlaPolicy(model_of(theirs), BODY, engine)
    for number, (size, task) in enumerate([((480, 640), "pick_up the red cube"), ((48, 31), " place it\n")]):
        seen = observation(size, task, number)
        ours = policy.predict(seen)
        assert ours is not None
        np.testing.assert_allclose(ours.actions, theirs.chunk(seen, noise()), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_cameras_are_masked(make: Make, kind: str) -> None:
    theirs = make(kind)
    policy = open_policy(theirs.folder)
    robot = replace(policy.robot(BODY), fewer_cameras=True)
    ours = VlaPolicy(policy.model([robot]), BODY)
    seen = observation((48, 64))
    for camera in seen.images:
        left = replace(seen, images={camera: seen.images[camera]})
        chunk = ours.predict(left)
        assert chunk is not None
        np.testing.assert_allclose(chunk.actions, theirs.chunk(left, noise()), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_the_original(make: Make, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"freeze_vision_encoder": False, "train_expert_only": False} if kind == "smolvla" else {}
    theirs = make(kind, **settings)
    model = model_of(theirs).train()
    seen = observation((40, 64))
    actions = np.random.default_rng(3).normal(size=(HORIZON, ACTION))
    drawn, time = noise()[None], torch.tensor([0.37])
    monkeypatch.setattr(flow, "REPEATS", 1)
    monkeypatch.setattr(flow, "_noise_and_time", lambda batch: (drawn, time))

    example = Example(seen.images, seen.instruction, actions, seen.state)
    losses, _, _ = model(model.processor.batch([example]))
    losses.mean().backward()
    with fixed_draws(theirs.policy, drawn, time):
        expected, _ = theirs.policy.forward(theirs.batch(seen, actions))
    expected.backward()

    assert losses.mean().item() == pytest.approx(expected.item(), rel=1e-5)
    ours = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    vlm = "paligemma_with_expert.paligemma" if kind != "smolvla" else "vlm_with_expert.vlm"
    compared = 0
    for name, weight in theirs.policy.model.named_parameters():
        if weight.grad is None or not name.startswith(vlm) or "lm_head" in name or "embed_tokens" in name:
            continue
        torch.testing.assert_close(ours[name.replace(vlm, "backbone.model")], weight.grad, atol=1e-5, rtol=1e-3)
        compared += 1
    assert compared > 20
    torch.testing.assert_close(
        ours["continuous_head.action_in_proj.weight"],
        theirs.policy.model.action_in_proj.weight.grad,
        atol=1e-5,
        rtol=1e-3,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_is_the_same(make: Make, kind: str, tmp_path: Path) -> None:
    model, seen = model_of(make(kind)), observation()
    model.save_pretrained(tmp_path / "ours")
    before, after = (VlaPolicy(one, BODY).predict(seen) for one in (model, VLA.from_pretrained(tmp_path / "ours")))
    assert before is not None
    assert after is not None
    np.testing.assert_allclose(after.actions, before.actions, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_exported_is_what_lerobot_computes(make: Make, kind: str, tmp_path: Path) -> None:
    theirs, seen = make(kind), observation()
    model = model_of(theirs)
    change(model)
    back = check_export(model, theirs, tmp_path / "exported", noise())
    ours, again = (VlaPolicy(one, BODY).predict(seen) for one in (model, model_of(back)))
    assert ours is not None and again is not None
    np.testing.assert_allclose(again.actions, ours.actions, atol=1e-5)
    with pytest.raises(InputError, match="not empty"):
        export_lerobot(model, tmp_path / "exported")


def test_a_state_that_was_not_normalised_is_exported_as_it_was_trained(make: Make, tmp_path: Path) -> None:
    theirs, seen = make("pi0"), observation()
    model = model_of(theirs)
    change(model)
    export_lerobot(model, tmp_path / "before")
    assert model.processor.policy is not None
    for values in (model.processor.policy.source["config"], *_configs(model.processor.policy.source)):
        for name in values.keys() & {"normalization_mapping", "norm_map"}:
            values[name] |= {"STATE": "IDENTITY"}
    export_lerobot(model, tmp_path / "exported")
    before, exported = (theirs.reloaded(tmp_path / name).chunk(seen, noise()) for name in ("before", "exported"))
    np.testing.assert_allclose(exported, before, atol=1e-4)
    for values in (model.processor.policy.source["config"], *_configs(model.processor.policy.source)):
        for name in values.keys() & {"normalization_mapping", "norm_map"}:
            del values[name]  # as a folder may lack them
    check_export(model, theirs, tmp_path / "unnamed", noise())


def _configs(source: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for pipeline in source.values():
        if isinstance(pipeline, dict) and "steps" in pipeline:
            yield from (step["config"] for step in pipeline["steps"] if "config" in step)


@pytest.mark.parametrize("kind", ["pi0", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("smolvla", "pi05"))])
def test_it_is_trained_and_exported_by_the_commands(
    make: Make, kind: str, tmp_path: Path, make_episode: Callable[..., Episode], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, store = str(make(kind).folder), str(tmp_path / "data.zarr")
    write_store(store, [make_episode(seed, steps=14) for seed in range(3)])
    plan = ["plan.steps=2", "plan.batch_size=2", "plan.precision=fp32", "heldout_questions=0"]
    run = ["train", f"backbone={folder}", f"data={store}", "mixture.vqa=0", *plan]
    assert main([*run, f"out={tmp_path / 'run'}"]) == 0
    assert f"horizon={HORIZON}, predict=unchanged" in capsys.readouterr().out
    model = VLA.load(tmp_path / "run/best")
    assert model.processor.policy is not None
    assert model.processor.robots[0].horizon == HORIZON
    # It differs from the policy, by two small steps.
    before = open_policy(folder).weights["continuous_head.action_in_proj.weight"]
    step = (model.state_dict()["continuous_head.action_in_proj.weight"] - before).abs().max()
    assert 0 < step < 0.01
    assert main(["export-lerobot", f"policy={tmp_path / 'run'}", f"out={tmp_path / 'out'}"]) == 0
    assert open_policy(tmp_path / "out").cameras == ("observation.images.front", "observation.images.wrist")
    # Options of training apply to its head; its sizes are those of the weights.
    insulated = ["head=flow", "head.knowledge_insulation=true", "head.tokens=bins", "head.rtc_training=true"]
    assert main([*run, f"out={tmp_path / 'insulated'}", *insulated]) == 0
    head = VLA.load(tmp_path / "insulated/best").processor.head
    assert head is not None
    settings = head.settings
    assert settings["knowledge_insulation"] and settings["rtc_training"] and settings["layout"]["noisy_padding"]
    assert main([*run, f"out={tmp_path / 'wide'}", "head=flow", "head.width=64"]) == 2
    assert "determine head.width: leave it out" in capsys.readouterr().err
    assert main([*run, f"out={tmp_path / 'wide'}", "statistics=merge"]) == 2
    assert "is not a policy of this robot to continue" in capsys.readouterr().err
    # It goes on, and another robot joins it.
    other = str(tmp_path / "other.zarr")
    two: dict[str, Any] = {"action": TOY.action[:2], "action_low": (-1.0,) * 2, "action_high": (1.0,) * 2}
    body = replace(TOY, name="other", action_mode=(), action_state=(), action_turn=(), **two)
    episodes = [make_episode(seed, steps=14) for seed in range(3)]
    fewer = [replace(e, embodiment=body, action=e.action[:, :2]) for e in episodes]
    write_store(other, fewer)
    joined = [*run[:1], f"backbone={tmp_path / 'run'}", f"data={other}", *run[3:], f"out={tmp_path / 'joined'}"]
    assert main(joined) == 0
    assert [robot.name for robot in VLA.load(tmp_path / "joined/best").processor.robots] == ["toy", "other"]
    # Another head is trained on its vision-language model alone.
    assert main([*run, f"out={tmp_path / 'other'}", "head=parallel", "horizon=3"]) == 0
    assert "its vision-language model alone" in capsys.readouterr().out


def test_long_instructions_are_cut_as_in_training(make: Make) -> None:
    theirs = make("pi0")
    seen = observation(task="pick up the red cube " * 30)
    ours = VlaPolicy(model_of(theirs), BODY).predict(seen)
    assert ours is not None
    np.testing.assert_allclose(ours.actions, theirs.chunk(seen, noise()), atol=1e-4)


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_openpis_layout_is_the_same_policy(
    make: Make, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, folder = make(kind), tmp_path / "openpi"
    save_as_openpi(theirs, folder)
    monkeypatch.setattr(pi, "TOKENIZER", str(theirs.folder.parent / "tokenizer"))
    policy = open_policy(folder)
    seen = observation((28, 28), "pick up the red cube")
    ours = VlaPolicy(policy.model([policy.robot(BODY)]), BODY).predict(seen)
    assert ours is not None
    np.testing.assert_allclose(ours.actions, theirs.chunk(seen, noise()), atol=1e-4)
    (folder / "assets/other").mkdir()
    (folder / "assets/other/norm_stats.json").write_text("{}")
    with pytest.raises(InputError, match="statistics of bot, other"):
        open_policy(folder)


def test_openpis_images_are_resized_as_pillow_does() -> None:
    image = observation((480, 640)).images["front"]
    frame = np.zeros((224, 224, 3), np.uint8)
    draw(image, FloorPad((224, 224)).view(480, 640), [frame])
    expected = np.zeros_like(frame)
    expected[28:196] = np.asarray(Image.fromarray(image).resize((224, 168), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(frame, expected)


@pytest.mark.parametrize("steps", [4, 25])
def test_the_number_of_steps_is_the_policys(make: Make, steps: int) -> None:
    theirs, seen = make("pi05", num_inference_steps=steps), observation()
    for engine in (None, "float32"):
        ours = VlaPolicy(model_of(theirs), BODY, engine).predict(seen)
        assert ours is not None
        np.testing.assert_allclose(ours.actions, theirs.chunk(seen, noise()), atol=1e-4)


def test_questions_and_robots_share_a_batch(make: Make) -> None:
    for kind in KINDS:
        model, seen = model_of(make(kind)), observation((40, 60))
        actions = np.zeros((HORIZON, ACTION))
        robot = Example(seen.images, seen.instruction, actions, seen.state)
        question = Example({"main": seen.images["front"]}, "what is red?", "a cube")
        together = model(model.processor.batch([question, robot]))
        alone = model(model.processor.batch([question]))
        words = len(alone[0])
        torch.testing.assert_close(together[0][:words], alone[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["pi05", "smolvla"])
def test_the_order_of_the_cameras_is_the_policys(make: Make, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    theirs, observed = make(kind), observation()
    policy = open_policy(theirs.folder)
    turned = replace(BODY, cameras=BODY.cameras[::-1])
    ours = VlaPolicy(policy.model([policy.robot(turned)]), turned).predict(observed)
    assert ours is not None
    np.testing.assert_allclose(ours.actions, theirs.chunk(observed, noise()), atol=1e-4)
    other = policy.robot(replace(BODY, cameras=("top", "side")))
    assert other.embodiment.cameras == ("top", "side")
    assert "top for observation.images.front" in capsys.readouterr().out


def test_a_base_without_statistics_is_for_training(make: Make) -> None:
    theirs = make("pi05")
    file = theirs.folder / "policy_preprocessor.json"
    values = json.loads(file.read_text())
    for step in values["steps"]:
        step.pop("state_file", None)
    file.write_text(json.dumps(values))
    with pytest.raises(InputError, match="no statistics of its state"):
        open_policy(theirs.folder).robot(BODY)


def test_what_is_no_policy_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert not is_policy(tmp_path)
    assert not is_policy("nano")
    assert policy_defaults({"vision": "a"}) is None


def test_widths_that_do_not_fit_are_refused(make: Make) -> None:
    policy = open_policy(make("pi0").folder)
    fewer = replace(BODY, state=BODY.state[:3], action_state=(None,) * ACTION)
    with pytest.raises(InputError, match="has 7 components, that of bot 3"):
        policy.robot(fewer)

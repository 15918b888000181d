"""EVO1 as a native model, against LeRobot's own class on small random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_store
from lerobot_evo1 import PADDED, Evo1Reference, evo1_reference, fixed_draws
from lerobot_policies import ACTION, BODY, HORIZON, change, check_export, observation
from safetensors.torch import load_file
from transformers import AutoModel, InternVLConfig

from vla.commands.cli import main
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.models.action_heads import cross_flow, flow
from vla.models.action_heads.cross_attention_flow import CrossAttentionFlow, CrossFlowShape, uniform_noise
from vla.models.released import evo1
from vla.models.released.catalog import RELEASED
from vla.models.released.lerobot_export import export_lerobot
from vla.models.released.registry import open_policy, policy_defaults
from vla.models.vla import VLA
from vla.policies.vla import VlaPolicy
from vla.training.batches import trimmed
from vla.types import Episode, Example, Observation, RTCPrefix

Make = Callable[..., Evo1Reference]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    return lambda **options: evo1_reference(tmp_path / "theirs", monkeypatch, **options)


def model_of(theirs: Evo1Reference, **changes: Any) -> VLA:
    policy = open_policy(theirs.folder)
    return policy.model([replace(policy.robot(BODY), **changes)])


def noise() -> torch.Tensor:
    """The noise of our decoding, (h, a)."""
    return uniform_noise((HORIZON, PADDED), generator=torch.Generator().manual_seed(0))


def without(seen: Observation, camera: str) -> Observation:
    return replace(seen, images={name: image for name, image in seen.images.items() if name != camera})


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("engine", [None, "float32"])
def test_chunks_in_robot_units_are_those_of_the_original(make: Make, engine: str | None, pooled: bool) -> None:
    theirs = make(return_cls_only=pooled)
    policy = VlaPolicy(model_of(theirs, fewer_cameras=True), BODY, engine)
    large, odd = observation((480, 640), " pick_up the red cube\n"), observation((31, 48), "place it", 1)
    seen = [large, odd, without(large, "front"), without(odd, "wrist")]
    together = policy.predict_batch(seen)
    for one, row in zip(seen, together, strict=True):
        expected, alone = theirs.chunk(one, noise()), policy.predict(one)
        assert alone is not None and row is not None
        np.testing.assert_allclose(alone.actions, expected, atol=1e-4)
        np.testing.assert_allclose(row.actions, expected, atol=1e-4)


@pytest.mark.parametrize("cameras", [("front", "wrist"), ("wrist",)])
@pytest.mark.parametrize("pooled", [False, True])
def test_loss_and_gradients_are_those_of_the_original(
    make: Make, pooled: bool, cameras: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = make(return_cls_only=pooled)
    model = model_of(theirs, fewer_cameras=True).train()
    rng, drawn, time = np.random.default_rng(3), torch.stack([noise(), -noise()]), torch.tensor([0.37, 0.81])
    tasks = ("pick_up the red cube ", "place it")
    seen = [observation((480, 640), task, seed) for seed, task in enumerate(tasks)]
    seen = [replace(one, images={name: one.images[name] for name in cameras}) for one in seen]
    actions, inside = rng.normal(size=(2, HORIZON, ACTION)), np.arange(HORIZON) < np.array([[HORIZON], [6]])
    monkeypatch.setattr(flow, "REPEATS", 1)
    monkeypatch.setattr(cross_flow, "_noise_and_time", lambda batch: (drawn, time))

    rows = [
        Example(one.images, one.instruction, chunk, one.state, mask=mask)
        for one, chunk, mask in zip(seen, actions, inside, strict=True)
    ]
    losses, _, _ = model(trimmed(model.processor.batch(rows)))
    losses.mean().backward()
    pair = [theirs.batch(one, chunk) for one, chunk in zip(seen, actions, strict=True)]
    batch = {name: torch.cat([one[name] for one in pair]) for name in pair[0] if name.startswith(("obs", "action"))}
    batch |= {"task": [one.instruction for one in seen], "action_is_pad": torch.from_numpy(~inside)}
    with fixed_draws(drawn, time):
        expected, _ = theirs.policy.forward(batch)
    expected.backward()

    assert losses.mean().item() == pytest.approx(expected.item(), rel=1e-5)
    ours = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    words = len(theirs.policy.model.embedder.model.get_input_embeddings().weight)
    named = evo1.exported(ours, words, 2)
    compared = {name: weight.grad for name, weight in theirs.policy.model.named_parameters() if weight.grad is not None}
    assert len(compared) > 90
    for name, gradient in compared.items():
        torch.testing.assert_close(named.pop(name), gradient, atol=1e-4, rtol=1e-3)
    assert not [name for name in named if name not in evo1.TABLES]


def test_long_instructions_are_cut_as_in_training(make: Make) -> None:
    theirs, seen = make(max_text_length=130), observation(task="pick up the red cube " * 9)
    ours = VlaPolicy(model_of(theirs), BODY).predict(seen)
    assert ours is not None
    np.testing.assert_allclose(ours.actions, theirs.chunk(seen, noise()), atol=1e-4)


def test_saved_and_loaded_it_is_the_same(make: Make, tmp_path: Path) -> None:
    model, seen = model_of(make()), observation()
    model.save_pretrained(tmp_path / "ours")
    before, after = (VlaPolicy(one, BODY).predict(seen) for one in (model, VLA.from_pretrained(tmp_path / "ours")))
    assert before is not None and after is not None
    np.testing.assert_allclose(after.actions, before.actions, atol=1e-6)


def test_what_is_exported_is_what_lerobot_computes(make: Make, tmp_path: Path) -> None:
    theirs, seen = make(), observation()
    model = model_of(theirs)
    change(model)
    back = check_export(model, theirs, tmp_path / "exported", noise())
    stored, written = (load_file(folder / "model.safetensors") for folder in (theirs.folder, tmp_path / "exported"))
    assert {name: weight.shape for name, weight in stored.items()} == {name: w.shape for name, w in written.items()}
    for table in evo1.TABLES:
        torch.testing.assert_close(written[f"model.{table}"], stored[f"model.{table}"], atol=0, rtol=0)
    ours, again = (VlaPolicy(one, BODY).predict(seen) for one in (model, model_of(back)))
    assert ours is not None and again is not None
    np.testing.assert_allclose(again.actions, ours.actions, atol=1e-5)


def test_what_is_exported_fits_a_robot_with_more_cameras_and_fewer_joints(make: Make, tmp_path: Path) -> None:
    theirs = make(postprocess_action_dim=ACTION)
    policy, three, few = open_policy(theirs.folder), ("front", "wrist", "top"), ACTION - 2
    robot = policy.robot(BODY)
    names, limits = BODY.action[:few], (BODY.action_low[:few], BODY.action_high[:few])
    body = Embodiment(BODY.name, (*three, "side"), BODY.state, names, *limits, BODY.control_hz)
    robot = replace(robot, embodiment=body, action=robot.action.cut(few), relative=(False,) * few)
    model, seen = policy.model([robot]), observation()
    images = {name: observation(seed=seed).images["front"] for seed, name in enumerate(body.cameras)}
    seen = replace(seen, images=images)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.001)
    export_lerobot(model, tmp_path / "exported")
    ours = VlaPolicy(model, body).predict(seen)
    assert ours is not None and ours.actions.shape == (HORIZON, few)
    chunk = theirs.reloaded(tmp_path / "exported").chunk(seen, noise())
    np.testing.assert_allclose(chunk, ours.actions, atol=1e-4)


def test_a_prefix_is_kept_and_a_leftover_guides(make: Make) -> None:
    policy, seen = VlaPolicy(model_of(make()), BODY), observation()
    alone = policy.predict(seen)
    assert alone is not None and policy.guides
    known = alone.actions[1:4] + 0.05
    committed = policy.predict(seen, prefix=RTCPrefix(known[:2]))
    guided = policy.predict(seen, prefix=RTCPrefix(known[:2], known[2:]))
    assert committed is not None and guided is not None
    np.testing.assert_allclose(committed.actions[:2], known[:2], atol=1e-6)
    np.testing.assert_allclose(guided.actions[:2], known[:2], atol=1e-6)
    assert np.abs(guided.actions[2] - known[2]).max() < np.abs(committed.actions[2] - known[2]).max()


def test_questions_and_robots_share_a_batch(make: Make) -> None:
    theirs, seen = make(), observation((40, 60))
    model = model_of(theirs)
    robot = Example(seen.images, seen.instruction, np.zeros((HORIZON, ACTION)), seen.state)
    question = Example({"main": seen.images["front"]}, "what is red?", "a cube")
    together = model(model.processor.batch([question, robot]))
    alone = model(model.processor.batch([question]))
    torch.testing.assert_close(together[0][: len(alone[0])], alone[0], atol=1e-4, rtol=1e-4)
    embedding, output = open_policy(theirs.folder).backbone.vocab_weights()
    assert embedding is output
    batch = model.processor.question_prompt(["what is red?", "and this thing?"], [question.images, question.images])
    pair = [model.processor.question_prompt([one], [question.images]) for one in ("what is red?", "and this thing?")]
    assert model.generate_text(batch, 5) == [model.generate_text(one, 5)[0] for one in pair]


def test_it_is_trained_and_exported_by_the_commands(
    make: Make, tmp_path: Path, make_episode: Callable[..., Episode], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, store = str(make().folder), str(tmp_path / "data.zarr")
    write_store(store, [make_episode(seed, steps=14) for seed in range(3)])
    plan = ["plan.steps=2", "plan.batch_size=2", "plan.precision=fp32", "heldout_questions=0"]
    run = ["train", f"backbone={folder}", f"data={store}", "mixture.vqa=0", *plan]
    assert main([*run, f"out={tmp_path / 'run'}"]) == 0
    assert f"is evo1: head=cross-flow, horizon={HORIZON}, predict=unchanged, normalization=min-max" in (
        capsys.readouterr().out
    )
    before, name = open_policy(folder).weights, "continuous_head.blocks.1.key_value.weight"
    change = (VLA.load(tmp_path / "run/best").state_dict()[name] - before[name]).abs().max()
    assert 0 < change < 0.01
    assert main(["export-lerobot", f"policy={tmp_path / 'run'}", f"out={tmp_path / 'out'}"]) == 0
    assert open_policy(tmp_path / "out").cameras == ("observation.images.front", "observation.images.wrist")
    # It goes on with adapters; what does not apply to its head is refused.
    again = [*run[:1], f"backbone={tmp_path / 'run'}", *run[2:]]
    assert main([*again, f"out={tmp_path / 'again'}", "lora={rank: 2}"]) == 0
    for option in ("knowledge_insulation", "rtc_training"):
        assert main([*run, f"out={tmp_path / option}", f"head.{option}=true"]) == 2
        assert f"there is no option 'head.{option}'" in capsys.readouterr().err.splitlines()[-1]
    assert main([*run, f"out={tmp_path / 'wide'}", "head=cross-flow", "head.layers=3"]) == 2
    assert "determine head.layers: leave it out" in capsys.readouterr().err
    assert main([*run, f"out={tmp_path / 'other'}", "head=parallel", "horizon=3"]) == 0
    assert "its vision-language model alone" in capsys.readouterr().out


def test_what_is_not_supported_is_one_line(make: Make) -> None:
    folder = make().folder
    policy = open_policy(folder)
    with pytest.raises(InputError, match="the head cross-flow does not have the option head.knowledge_insulation"):
        policy.model([policy.robot(BODY)], {"kind": "cross-flow", "knowledge_insulation": True})
    body = replace(BODY, cameras=tuple("abcde"))
    with pytest.raises(InputError, match="takes at most 4 cameras, bot has 5"):
        policy.model([replace(policy.robot(BODY), embodiment=body)])
    file = folder / "config.json"
    values = json.loads(file.read_text())
    for name, value, why in (
        ("num_categories", 2, "num_categories=2 is not supported"),
        ("binarize_gripper", True, "binarize_gripper=True is not supported"),
        ("dropout", 0.1, "dropout=0.1 is not supported"),
        ("max_state_dim", 8, "only equal widths"),
        ("postprocess_action_dim", 3, "postprocess_action_dim=3 of 5 components"),
        ("image_resolution", [28, 56], "only squares"),
        ("image_resolution", [56, 56], "those of the policy's InternVL have"),
        ("max_text_length", 20, "leaves no tokens for an instruction"),
        ("vlm_model_name", str(folder), "download its configuration"),
    ):
        file.write_text(json.dumps(values | {name: value}))
        with pytest.raises(InputError, match=why):
            open_policy(folder)
    assert policy_defaults(folder) is not None


def test_at_the_real_size_names_and_shapes_are_those_of_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lerobot.policies.evo1 import internvl3_embedder
    from lerobot.policies.evo1.configuration_evo1 import Evo1Config
    from lerobot.policies.evo1.evo1_model import Evo1Model

    internvl3_1b().save_pretrained(tmp_path)
    words = SimpleNamespace(convert_tokens_to_ids=lambda token: 151667)
    monkeypatch.setattr(internvl3_embedder, "AutoTokenizer", SimpleNamespace(from_pretrained=lambda name: words))
    model = SimpleNamespace(from_pretrained=lambda name, **_: AutoModel.from_config(internvl3_1b()))
    monkeypatch.setattr(internvl3_embedder, "AutoModel", model)
    made: Any = Evo1Config
    config = made(device="cpu")
    config.device = "meta"
    with torch.device("meta"):
        theirs = Evo1Model(config).state_dict()
        vlm = {name.removeprefix(evo1.VLM): w for name, w in theirs.items() if name.startswith(evo1.VLM)}
        backbone = evo1._backbone(vlm, evo1._vlm_config(str(tmp_path), 14), 448)
        rest = {name: w for name, w in theirs.items() if name.startswith(evo1.HEAD) and name not in evo1.TABLES}
        sizes = {k: v for k, v in evo1._head(rest, evo1.DEFAULTS).items() if k not in ("kind", "pooled")}
        module = CrossAttentionFlow(CrossFlowShape(context=backbone.hidden_size, **sizes), 50, 24, 24)
    head_state = {f"continuous_head.{name}": weight for name, weight in module.state_dict().items()}
    assert {name: w.shape for name, w in evo1._renamed(rest).items()} == {n: w.shape for n, w in head_state.items()}
    ours = evo1.exported({f"backbone.{n}": w for n, w in backbone.state_dict().items()} | head_state, 151674, 8)
    assert {name: w.shape for name, w in ours.items()} == {name: w.shape for name, w in theirs.items()}
    count = sum(weight.numel() for one in (backbone, module) for weight in one.parameters())
    row = next(row for row in RELEASED if row.name == "evo1")
    assert count == pytest.approx(row.parameters, rel=0.01)


def internvl3_1b() -> InternVLConfig:
    """The configuration of InternVL3-1B: InternViT of 300 M parameters and Qwen2.5 of 0.5 B."""
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    text = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
    made: Any = InternVLConfig
    config: InternVLConfig = made(
        vision_config={**vision, "attention_bias": True, "image_size": [448, 448], "patch_size": [14, 14]},
        text_config={"model_type": "qwen2", **text, "num_key_value_heads": 2, "vocab_size": 151674},
        image_token_id=151667,
    )
    return config

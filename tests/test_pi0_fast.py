"""pi0-FAST as a native model, against LeRobot's own class on small random weights and on memorised chunks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_store
from lerobot_fast import SKIPPED, WORDS, chunk, fast_reference, memorise
from lerobot_policies import BODY, HORIZON, LeRobotReference, observation
from safetensors.torch import load_file, save_file

from vla.commands.cli import main
from vla.control.inference import check_execution
from vla.errors import InputError
from vla.models.action_heads.fast import to_json
from vla.models.action_tokenizers.fast import FastTokenizer
from vla.models.released.lerobot_export import export_lerobot
from vla.models.released.registry import open_policy, policy_defaults
from vla.models.vla import VLA
from vla.policies.vla import VlaPolicy
from vla.types import Episode, Example, Observation

NOISE = torch.zeros(0)
OPENING = 3
"""Number of tokens of "Action: "."""


def pairs() -> list[tuple[Observation, np.ndarray[Any, Any]]]:
    """Observations with images of several sizes, without one of the cameras, and their chunks."""
    large, odd = observation((480, 640), "pick_up the red cube", 0), observation((48, 31), " place it\n", 1)
    seen = [large, odd, *(replace(odd, images={name: odd.images[name]}) for name in odd.images)]
    return [(one, chunk(number)) for number, one in enumerate(seen)]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LeRobotReference]:
    """A policy that has memorised `pairs`."""
    with pytest.MonkeyPatch.context() as patch:
        lengths = {"tokenizer_max_length": 100, "max_action_tokens": 90}  # without most of the padding
        theirs = fast_reference(tmp_path_factory.mktemp("taught"), patch, **lengths)
        memorise(theirs, pairs())
        yield theirs


@pytest.fixture
def untaught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LeRobotReference:
    return fast_reference(tmp_path / "untaught", monkeypatch)


def model_of(theirs: LeRobotReference, **changes: Any) -> VLA:
    policy = open_policy(theirs.folder)
    return policy.model([replace(policy.robot(BODY), **changes)])


def example(seen: Observation, actions: np.ndarray[Any, Any]) -> Example:
    return Example(seen.images, seen.instruction, actions, seen.state)


@pytest.mark.parametrize("engine", [None, "float32"])
def test_greedy_chunks_in_robot_units_are_those_of_the_original(taught: LeRobotReference, engine: str | None) -> None:
    policy = VlaPolicy(model_of(taught, fewer_cameras=True), BODY, engine)
    together = policy.predict_batch([seen for seen, _ in pairs()])
    for (seen, actions), row in zip(pairs(), together, strict=True):
        expected = taught.chunk(seen, NOISE)
        assert np.abs(expected - actions).max() < 0.3  # it writes the chunk, which the original can decode
        ours = policy.predict(seen)
        assert ours is not None and row is not None
        np.testing.assert_allclose(ours.actions, expected, atol=1e-5)
        np.testing.assert_allclose(row.actions, expected, atol=1e-5)


def test_the_logits_of_every_token_are_those_of_the_original(taught: LeRobotReference) -> None:
    model, seen = model_of(taught), pairs()[0][0]
    output = model.backbone.language_model.get_output_embeddings()
    ours = logits(output, lambda: VlaPolicy(model, BODY).predict(seen))
    head = taught.policy.model.paligemma_with_expert.paligemma.lm_head
    theirs = logits(head, lambda: taught.chunk(seen, NOISE))[OPENING:]
    assert len(ours) > 10
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def logits(output: torch.nn.Module, decode: Callable[[], object]) -> torch.Tensor:
    """The outputs of this layer while decoding."""
    found: list[torch.Tensor] = []
    handle = output.register_forward_hook(lambda *values: found.append(values[-1].reshape(-1, WORDS)[-1]))
    decode()
    handle.remove()
    return torch.stack(found)


@pytest.mark.parametrize(("cameras", "size"), [(("front", "wrist"), (480, 640)), (("wrist",), (31, 48))])
def test_tokens_loss_and_gradients_are_those_of_the_original(
    untaught: LeRobotReference, cameras: tuple[str, ...], size: tuple[int, int]
) -> None:
    model = model_of(untaught, fewer_cameras=True).train()
    seen, actions = observation(size, " pick_up the red cube\n"), chunk(7)
    seen = replace(seen, images={name: seen.images[name] for name in cameras})
    theirs = untaught.batch(seen, actions)
    prompt = theirs["observation.language.tokens"][theirs["observation.language.attention_mask"]].tolist()
    written = theirs["action.tokens"][theirs["action.token_mask"]].tolist()
    batch = model.processor.batch([example(seen, actions)])
    assert batch.input_ids[0].tolist()[-len(prompt + written) :] == prompt + written
    assert WORDS - 1 - SKIPPED in range(max(written), WORDS)  # token 0

    losses, _, _ = model(batch)
    losses.mean().backward()
    expected, _ = untaught.policy.forward(theirs)
    expected.backward()
    assert losses.mean().item() == pytest.approx(expected.item(), rel=1e-5)
    ours = {name: weight.grad for name, weight in model.named_parameters()}
    for name, weight in untaught.policy.model.named_parameters():
        own = ours.pop(name.replace("paligemma_with_expert.paligemma", "backbone.model"))
        assert own is not None
        torch.testing.assert_close(own, weight.grad, atol=1e-5, rtol=1e-3)
    assert not ours


def test_long_chunks_are_cut_as_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = fast_reference(tmp_path, monkeypatch, max_action_tokens=20, tokenizer_max_length=30)
    seen, actions = observation(task="pick up the red cube " * 9), chunk(7)
    model = model_of(theirs)
    with torch.no_grad():
        losses, _, _ = model(model.processor.batch([example(seen, actions)]))
        expected, _ = theirs.policy.forward(theirs.batch(seen, actions))
    assert len(losses) == 19
    assert losses.mean().item() == pytest.approx(expected.item(), rel=1e-5)


def test_what_cannot_be_decoded_is_no_chunk(untaught: LeRobotReference) -> None:
    assert VlaPolicy(model_of(untaught), BODY).predict(observation()) is None


def test_a_prefix_of_actions_is_refused(untaught: LeRobotReference) -> None:
    policy = VlaPolicy(model_of(untaught), BODY)
    with pytest.raises(InputError, match="choose chunked"):
        check_execution(policy, "rtc")
    with pytest.raises(InputError, match="cannot start a chunk with an action prefix"):
        policy.predict(observation(), prefix=chunk(0, 2))


def test_a_file_with_the_output_layer_alone_has_it_as_embedding(untaught: LeRobotReference) -> None:
    file = untaught.folder / "model.safetensors"
    weights = load_file(file)
    del weights["model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"]
    save_file(weights, file)
    embedding, output = open_policy(untaught.folder).backbone.vocab_weights()
    torch.testing.assert_close(embedding, output, rtol=0, atol=0)
    del weights["model.paligemma_with_expert.paligemma.lm_head.weight"]
    save_file(weights, file)
    with pytest.raises(InputError, match=r"no lm_head.weight"):
        open_policy(untaught.folder)


def test_with_a_tokenizer_of_ours_every_chunk_is_complete(untaught: LeRobotReference, tmp_path: Path) -> None:
    policy = open_policy(untaught.folder)
    action = policy.robot(BODY).action
    ours = FastTokenizer.train(lambda: [action.normalize(chunk(seed))[None] for seed in range(9)], 300)
    model = policy.model([policy.robot(BODY)], {"kind": "fast", "tokenizer": to_json(ours)})
    for seed in range(3):
        assert VlaPolicy(model, BODY).predict(observation(seed=seed)) is not None
    with pytest.raises(InputError, match=r"train without head.tokenizer"):
        export_lerobot(model, tmp_path / "exported")
    with pytest.raises(InputError, match=r"determine head.layout: leave it out"):
        policy.model([policy.robot(BODY)], {"kind": "fast", "layout": {"last": 3}})


def test_saved_and_loaded_it_is_the_same(taught: LeRobotReference, tmp_path: Path) -> None:
    model = model_of(taught)
    model.save_pretrained(tmp_path / "ours")
    seen, _ = pairs()[0]
    before, after = (VlaPolicy(one, BODY).predict(seen) for one in (model, VLA.from_pretrained(tmp_path / "ours")))
    assert before is not None and after is not None
    np.testing.assert_array_equal(after.actions, before.actions)


def test_what_is_exported_is_what_lerobot_computes(taught: LeRobotReference, tmp_path: Path) -> None:
    model, (seen, _) = model_of(taught), pairs()[0]
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.001)
    export_lerobot(model, tmp_path / "exported")
    back = taught.reloaded(tmp_path / "exported")
    ours = VlaPolicy(model, BODY).predict(seen)
    assert ours is not None
    np.testing.assert_allclose(back.chunk(seen, NOISE), ours.actions, atol=1e-5)


def test_questions_and_robots_share_a_batch(untaught: LeRobotReference) -> None:
    model, seen = model_of(untaught), observation((40, 60))
    question = Example({"main": seen.images["front"]}, "what is red?", "a cube")
    together = model(model.processor.batch([question, example(seen, chunk(3))]))
    alone = model(model.processor.batch([question]))
    torch.testing.assert_close(together[0][: len(alone[0])], alone[0], atol=1e-4, rtol=1e-4)


def test_it_is_trained_and_exported_by_the_commands(
    untaught: LeRobotReference, tmp_path: Path, make_episode: Callable[..., Episode], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, store = str(untaught.folder), str(tmp_path / "data.zarr")
    write_store(store, [make_episode(seed, steps=14) for seed in range(3)])
    plan = ["plan.steps=2", "plan.batch_size=2", "plan.precision=fp32", "heldout_questions=0"]
    run = ["train", f"backbone={folder}", f"data={store}", "mixture.vqa=0", *plan]
    assert main([*run, f"out={tmp_path / 'run'}"]) == 0
    assert f"is pi0_fast: head=fast, horizon={HORIZON}, predict=unchanged, normalization=mean-std" in (
        capsys.readouterr().out
    )
    model = VLA.load(tmp_path / "run/best")
    own = open_policy(folder).head
    assert model.processor.head is not None
    assert model.processor.head.settings == own  # with the policy's own tokenizer of actions
    assert main(["export-lerobot", f"policy={tmp_path / 'run'}", f"out={tmp_path / 'out'}"]) == 0
    assert open_policy(tmp_path / "out").cameras == ("observation.images.front", "observation.images.wrist")
    assert main([*run, f"out={tmp_path / 'prefix'}", "delay=0.1"]) == 2
    assert "the head fast takes no action prefix: leave out delay" in capsys.readouterr().err
    assert main([*run, f"out={tmp_path / 'dropout'}", "plan.state_dropout=0.2"]) == 2
    assert "state_dropout needs the state as numbers" in capsys.readouterr().err
    # It goes on; with another head its vision-language model alone is used.
    again = [*run[:1], f"backbone={tmp_path / 'run'}", *run[2:], f"out={tmp_path / 'again'}", "lora={rank: 2}"]
    assert main(again) == 0
    assert main([*run, f"out={tmp_path / 'other'}", "head=parallel", "horizon=3"]) == 0
    assert "its vision-language model alone" in capsys.readouterr().out


def test_what_is_not_supported_is_one_line(untaught: LeRobotReference) -> None:
    config, file = untaught.folder / "config.json", untaught.folder / "policy_preprocessor.json"
    values, steps = json.loads(config.read_text()), json.loads(file.read_text())
    assert policy_defaults(untaught.folder) is not None
    for name, value in (("temperature", 0.5), ("fast_skip_tokens", 0)):
        config.write_text(json.dumps(values | {name: value}))
        with pytest.raises(InputError, match=f"{name}={value} is not supported"):
            open_policy(untaught.folder)
    missing = str(untaught.folder / "missing")
    config.write_text(json.dumps(values | {"action_tokenizer_name": missing}))
    with pytest.raises(InputError, match="name one tokenizer in both"):
        open_policy(untaught.folder)
    for step in steps["steps"]:
        step["config"].pop("action_tokenizer_name", None)
    file.write_text(json.dumps(steps))
    with pytest.raises(InputError, match="download it, and name its folder as action_tokenizer_name in config.json"):
        open_policy(untaught.folder)

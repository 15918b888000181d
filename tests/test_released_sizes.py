"""Released policies at their real widths, with fewer layers: loading takes little more memory than the model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openvla_checkpoints
import pytest
import torch
from lerobot_policies import gemma_tokenizer
from safetensors.torch import save_file

from vla.models.released.pi import EXPERT, VLM

LAYERS, SHARDS = 12, 3
OPENVLA_LAYERS, OPENVLA_WORDS = 4, 32000
WIDTH, EXPERT_WIDTH, VOCABULARY = 2048, 1024, 257152
MOST = 1.3
"""Largest ratio of the memory of a process that loads the model, without the pages of its files, to the model's."""
CODE = """
import json, sys, threading, time
import numpy as np
import torch
from vla.embodiment import Embodiment
from vla.models.normalization import Normalizer
from vla.models.robot_spec import RobotSpec
from vla.models.released.registry import open_policy
from vla.policies.vla import VlaPolicy
from vla.training.lora import adapt
from vla.types import Example, Observation

def memory():
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return int(lines["RssAnon"].split()[0]) * 1024

def watch():
    while True:
        peak[0] = max(peak[0], memory())
        time.sleep(0.005)

peak = [0]
before = memory()
threading.Thread(target=watch, daemon=True).start()
policy = open_policy(sys.argv[1])
count, cameras = int(sys.argv[2]), sys.argv[3].split(",")
names = tuple(f"joint {i} [rad]" for i in range(count))
body = Embodiment("arm", tuple(cameras), names, names, (-9.0,) * count, (9.0,) * count, 10.0)
one = Normalizer((-1.0,) * count, (1.0,) * count)
model = policy.model([RobotSpec(body, policy.horizon, one, one, "", 0)])
size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
loaded = (peak[0] - before) / size
images = {camera: np.zeros((480, 640, 3), np.uint8) for camera in body.cameras}
seen = Observation(images, np.zeros(count), "pick up the red cube", 0.0)
chunk = VlaPolicy(model, body).predict(seen)
shape = None if chunk is None else chunk.actions.shape
adapt(model, rank=4)
model.train()
example = Example(images, seen.instruction, np.full((policy.horizon, count), 0.1), seen.state)
optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], 1e-3)
loss = model(model.processor.batch([example]))[0].mean()
loss.backward()
optimizer.step()
finite = bool((chunk is None or np.isfinite(chunk.actions).all()) and loss.isfinite())
print(json.dumps({"loaded": loaded, "chunk": shape, "finite": finite}))
"""


def pi05_shapes() -> dict[str, tuple[int, ...]]:
    """The published names and shapes of pi0.5, with `LAYERS` layers of each part."""
    vision, language, layers = f"{VLM}model.vision_tower.vision_model.", f"{VLM}model.language_model.", range(LAYERS)
    shapes: dict[str, tuple[int, ...]] = {
        f"{vision}embeddings.patch_embedding.weight": (1152, 3, 14, 14),
        f"{vision}embeddings.patch_embedding.bias": (1152,),
        f"{vision}embeddings.position_embedding.weight": (256, 1152),
        f"{vision}post_layernorm.weight": (1152,),
        f"{vision}post_layernorm.bias": (1152,),
        f"{VLM}model.multi_modal_projector.linear.weight": (WIDTH, 1152),
        f"{VLM}model.multi_modal_projector.linear.bias": (WIDTH,),
        f"{VLM}lm_head.weight": (VOCABULARY, WIDTH),
        f"{language}norm.weight": (WIDTH,),
        f"{EXPERT}norm.dense.weight": (3 * EXPERT_WIDTH, EXPERT_WIDTH),
        f"{EXPERT}norm.dense.bias": (3 * EXPERT_WIDTH,),
        "action_in_proj.weight": (EXPERT_WIDTH, 32),
        "action_in_proj.bias": (EXPERT_WIDTH,),
        "action_out_proj.weight": (32, EXPERT_WIDTH),
        "action_out_proj.bias": (32,),
    }
    for name in ("time_mlp_in", "time_mlp_out"):
        shapes |= {f"{name}.weight": (EXPERT_WIDTH, EXPERT_WIDTH), f"{name}.bias": (EXPERT_WIDTH,)}
    for i in layers:
        at = f"{vision}encoder.layers.{i}."
        for name, (out, into) in {
            **{f"self_attn.{part}_proj": (1152, 1152) for part in ("q", "k", "v", "out")},
            "mlp.fc1": (4304, 1152),
            "mlp.fc2": (1152, 4304),
        }.items():
            shapes |= {f"{at}{name}.weight": (out, into), f"{at}{name}.bias": (out,)}
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{at}{norm}.weight": (1152,), f"{at}{norm}.bias": (1152,)}
        for at, width, mlp in ((f"{language}layers.{i}.", WIDTH, 16384), (f"{EXPERT}layers.{i}.", EXPERT_WIDTH, 4096)):
            shapes |= {
                f"{at}self_attn.q_proj.weight": (2048, width),
                f"{at}self_attn.k_proj.weight": (256, width),
                f"{at}self_attn.v_proj.weight": (256, width),
                f"{at}self_attn.o_proj.weight": (width, 2048),
                f"{at}mlp.gate_proj.weight": (mlp, width),
                f"{at}mlp.up_proj.weight": (mlp, width),
                f"{at}mlp.down_proj.weight": (width, mlp),
            }
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{language}layers.{i}.{norm}.weight"] = (WIDTH,)
            shapes[f"{EXPERT}layers.{i}.{norm}.dense.weight"] = (3 * EXPERT_WIDTH, EXPERT_WIDTH)
            shapes[f"{EXPERT}layers.{i}.{norm}.dense.bias"] = (3 * EXPERT_WIDTH,)
    return shapes


def write_shards(folder: Path, shapes: dict[str, tuple[int, ...]], largest: Mapping[str, slice] | None = None) -> None:
    """Writes random weights in bfloat16, in shards with an index; the rows `largest` of a weight by name are larger."""
    weight_map = {}
    for shard in range(SHARDS):
        names = [*shapes][shard::SHARDS]
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        weights = {n: 0.02 * torch.randn(shapes[n], dtype=torch.bfloat16) for n in names}
        for name in weights.keys() & (largest or {}).keys():
            weights[name][(largest or {})[name]] *= 50
        save_file(weights, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def used(policy: str, components: int, cameras: str) -> Any:
    """Loads the policy in a process, predicts a chunk and takes a training step with LoRA."""
    arguments = [sys.executable, "-c", CODE, policy, str(components), cameras]
    ran = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.slow
def test_pi05_at_its_real_width_takes_little_more_memory_than_its_weights(tmp_path: Path) -> None:
    gemma_tokenizer().save_pretrained(tmp_path / "tokenizer")
    write_shards(tmp_path, {f"model.{name}": shape for name, shape in pi05_shapes().items()})
    config = {"type": "pi05", "chunk_size": 50, "dtype": "bfloat16", "normalization_mapping": {"ACTION": "QUANTILES"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    step = {"registry_name": "tokenizer_processor", "config": {"tokenizer_name": str(tmp_path / "tokenizer")}}
    (tmp_path / "policy_preprocessor.json").write_text(json.dumps({"steps": [step]}))
    found = used(str(tmp_path), 6, "front,wrist")
    assert found["chunk"] == [50, 6] and found["finite"]
    assert found["loaded"] < MOST


def openvla_shapes() -> dict[str, tuple[int, ...]]:
    """The published names and shapes of openvla-7b, with `OPENVLA_LAYERS` layers of each part."""
    published = json.loads((Path(__file__).parent / "data" / "openvla.json").read_text())["openvla-7b"]
    layers = range(OPENVLA_LAYERS)
    return {
        re.sub(r"\{0-\d+\}", str(i), pattern): tuple(shape)
        for pattern, shape in published.items()
        for i in (layers if "{" in pattern else (0,))
    }


@pytest.mark.slow
def test_openvla_at_its_real_width_takes_little_more_memory_than_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvla_checkpoints, "WORDS", OPENVLA_WORDS)
    openvla_checkpoints.write_settings(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"] |= {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": OPENVLA_LAYERS}
    config["text_config"] |= {"num_attention_heads": 32, "num_key_value_heads": 32}
    (tmp_path / "config.json").write_text(json.dumps(config | {"image_sizes": [224, 224]}))
    # As in a trained policy: after the prompt a token of the last 256 words is the most probable.
    actions = slice(OPENVLA_WORDS - openvla_checkpoints.BINS, OPENVLA_WORDS)
    write_shards(tmp_path, openvla_shapes(), {"language_model.lm_head.weight": actions})
    found = used(f"{tmp_path}?unnorm_key=one", 7, "image")
    assert found["chunk"] == [1, 7] and found["finite"]
    assert found["loaded"] < MOST

"""Sharing checkpoints: the hub, model cards, and the files that LeRobot reads."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

from vla.common.images import sides
from vla.errors import InputError, reading

COPY = "copy the checkpoint again, or train it"
FILES = ("config.json", "model.safetensors", "processor.json", "tokenizer.json")
"""The required files of a checkpoint."""
WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
HUB_NAME = r"[\w-][\w.-]*/[\w-][\w.-]*"

# LeRobot's pre- and post-processing. The model normalises internally, so they only rename, batch and move tensors.
# LeRobot expects both normalizers when it continues the training of a checkpoint; these change nothing.
LEROBOT_FILES: dict[str, dict[str, Any]] = {
    "policy_preprocessor.json": {
        "name": "policy_preprocessor",
        "steps": [
            {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
            {"registry_name": "to_batch_processor", "config": {}},
            {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}},
            {"registry_name": "normalizer_processor", "config": {"eps": 1e-8, "features": {}, "norm_map": {}}},
        ],
    },
    "policy_postprocessor.json": {
        "name": "policy_postprocessor",
        "steps": [
            {"registry_name": "unnormalizer_processor", "config": {"eps": 1e-8, "features": {}, "norm_map": {}}},
            {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}},
        ],
    },
}


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes a model's config.json, with the type by which LeRobot finds its plug-in, and LeRobot's files."""
    for name, values in {"config.json": {"type": "vla", **config}, **LEROBOT_FILES}.items():
        (folder / name).write_text(json.dumps(values, indent=1))


def checkpoint_of(folder: Path) -> Path:
    """The checkpoint in a folder; for a training run the best one.

    Raises:
        InputError: when there is none.
    """
    folder = folder / "best" if (folder / "best").exists() else folder
    for name in FILES:
        if not (folder / name).is_file():
            raise InputError(f"{folder} is not a checkpoint: {name} is missing")
    return folder


def weights_digest(folder: Path) -> str:
    """SHA-256 of the files that determine a checkpoint's output: weights, configuration, processor and tokenizer.

    It supports checkpoints of this project, LeRobot and transformers.
    """
    found = [one for one in folder.iterdir() if one.suffix in WEIGHTS or one.name in (*FILES, *LEROBOT_FILES)]
    total = hashlib.sha256()
    for path in sorted(found, key=lambda one: one.name):
        with path.open("rb") as file:
            total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def tasks_of(folder: Path) -> tuple[str, ...]:
    """The simulated tasks on which a checkpoint was trained; empty where unknown."""
    file = folder / "processor.json"
    with reading(file, COPY):
        return tuple(json.loads(file.read_text()).get("tasks", ())) if file.is_file() else ()


def fetch(name: str | Path, revision: str | None = None) -> Path:
    """The folder `name`, or a local copy of the hub's model `name` ("user/model"), cached if possible.

    Raises:
        InputError: when `name` is neither, or the hub cannot be reached.
    """
    if (folder := Path(name)).is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    if not re.fullmatch(HUB_NAME, str(name)):
        raise InputError(f"{name} is neither a folder nor a model of the hub, which is written user/model")
    try:
        return Path(snapshot_download(str(name), revision=revision))
    except HfHubHTTPError as error:
        raise InputError(f"the hub has no model {name} that you may read: is it private? `hf auth login`") from error
    except OSError as error:  # raised by huggingface_hub without a network or in offline mode
        raise InputError(
            f"{name} is not a local folder, not in the hub's cache, and the hub cannot be reached: "
            "download it where there is a network, and give its folder"
        ) from error


def card(folder: Path, license: str = "other") -> str:
    """The model card (README.md with the hub's YAML header) of a checkpoint, from its files.

    It has the scores of the last evaluation in training, if training.json exists.

    Raises:
        InputError: when a file is missing or damaged.
    """
    folder = checkpoint_of(folder)
    with reading(folder / "config.json", COPY):
        backbone = json.loads((folder / "config.json").read_text())["backbone"]
        components = [f"{name} {_model(backbone[name])}" for name in ("vision", "language") if name in backbone]
        family = backbone.get("family", "composed")
    with reading(folder / "processor.json", COPY):
        processor = json.loads((folder / "processor.json").read_text())
        robots = processor.get("robots", [])
        drives = [_drives(robot) for robot in robots]
        size = "{} x {} pixels".format(*sides(processor["image_size"]))
        head = {"kind": "parallel", **processor.get("head", {})}
    with reading(folder / "model.safetensors", COPY):
        count = parameters(folder / "model.safetensors")
    with reading(folder / "training.json", COPY):
        scores = _scores(folder)
    kind = "robotics" if robots else "image-text-to-text"
    tags = ["robotics", "vision-language-action", "lerobot"] if robots else ["vision-language"]
    front = ["license: " + license, "library_name: vla", f"pipeline_tag: {kind}", "tags:", *(f"- {t}" for t in tags)]
    facts = {
        "parameters": f"{count / 1e6:.1f} M",
        "backbone": ", ".join([family, *components]),
        "images": size,
    }
    if robots:
        facts["action head"] = ", ".join([head["kind"], *(f"{k} {v}" for k, v in head.items() if k != "kind")])
    category = "vision-language-action policy" if robots else "vision-language model"
    sections = [
        "---\n" + "\n".join(front) + "\n---",
        f"# A {category}, trained with vla {version('vla')}",
        "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in facts.items()),
        *drives,
        *scores,
        _loading(bool(robots)),
        _limits(robots),
    ]
    return "\n\n".join(sections) + "\n"


def parameters(weights: Path) -> int:
    """Number of parameters in a safetensors file, from its header."""
    with weights.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _model(values: Any) -> str:
    return str(values.get("model_type", values)) if isinstance(values, Mapping) else str(values)


def _drives(robot: Mapping[str, Any]) -> str:
    body = robot["embodiment"]
    rows = {
        "cameras": ", ".join(body["cameras"]),
        "state": ", ".join(body["state"]),
        "action": ", ".join(body["action"]),
        "chunk": f"{robot['horizon']} actions, {body['control_hz']:g} a second",
    }
    return f"## Drives {body['name']}\n\n| | |\n|---|---|\n" + "\n".join(f"| {k} | {v} |" for k, v in rows.items())


def _scores(folder: Path) -> list[str]:
    """A section with the scores at the checkpoint's step, if there are any."""
    if not (folder / "training.json").exists():
        return []
    training = json.loads((folder / "training.json").read_text())
    current = [scores for scores in training["evaluations"] if scores["step"] == training["step"]]
    rows = "\n".join(f"| {k} | {v:.4g} |" for k, v in current[-1].items() if k != "step") if current else ""
    title = f"## On held-out data, after {training['step']} steps"
    return [f"{title}\n\n| score | value |\n|---|---|\n{rows}"] if rows else []


def _loading(drives: bool) -> str:
    lines = ["from vla.models.vla import VLA", "", 'model = VLA.from_pretrained("user/model")  # or a folder']
    if drives:
        lines += ["", "import vla", "", 'policy = vla.load_policy("hub:user/model")']
    text = "## Load it\n\n```python\n" + "\n".join(lines) + "\n```"
    if not drives:
        return text
    shell = "vla eval policy=hub:user/model\nlerobot-eval --policy.path=user/model --env.type=vla"
    return f"{text}\n\n```bash\n{shell}\n```\n\nLeRobot loads it with the plug-in `lerobot_policy_vla`."


def _limits(robots: list[Any]) -> str:
    if not robots:
        return "## Limits\n\nIt answers questions about images and drives no robot."
    return (
        "## Limits\n\n"
        "It drives the robots above, with these cameras and at this rate, and no other. Held-out scores are of\n"
        "recorded data and are not success rates. Joint targets are clipped to the limits in the robot's data;\n"
        "there is no other collision avoidance."
    )

"""From examples and observations to token batches and back: the one path, saved with the weights.

A row is `<bos> image… image… prompt <answer> target <eos> [prompt <answer> target <eos> …]`.
Each image is `tokens_per_image` placeholders; actions are rows beyond the text vocabulary, one token a component.
An action target has a fixed length: where what the prompt names is in the images, if the data know it, one
coordinate after the other (as MolmoAct and embodied chain-of-thought reason before they act); then the actions,
all at once (OpenVLA-OFT, sec. 4), each in the place of a blank.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from tokenizers import Tokenizer
from torch import Tensor

from vla.errors import InputError
from vla.images import resize
from vla.robot_spec import RobotSpec, check_together
from vla.scene import POINT_SCALE
from vla.types import Example, Observation

IGNORE = -100
"""The label of a position that has no loss."""
PAD, BOS, EOS, IMAGE, ANSWER = SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<image>", "<answer>")
POINT_WEIGHT = 10.0
"""Of the loss of a point that is said before an action: all the action's tokens rest on its few."""
POINT_TOKENS = tuple(f"<{i}%>" for i in range(POINT_SCALE))
"""Coordinates of points, where the tokenizer has them (as PaliGemma's location tokens); else points are plain text."""
POINT = re.compile(r"(\b\d{1,2} \d{1,2}\b)")

Image = UInt8[np.ndarray, "_h _w 3"]
Views = Mapping[str, Image]
"""Images by camera, of any sizes."""


@dataclass(frozen=True)
class Batch:
    """Tensors of b rows with up to k images and l tokens. `labels` is IGNORE where there is no loss, and
    `weights` says how much each counts.

    `robot` is a row's place among the processor's robots, -1 for a question. `state` is normalised, `points` are what
    `point_features` makes of them; zero where a row has none, and beyond what its robot has.
    `segments` is 0 for what a whole row sees, and n for its n-th independent turn, which sees 0 and itself.
    """

    images: UInt8[Tensor, "b k h w 3"]
    image_mask: Bool[Tensor, "b k"]
    input_ids: Int[Tensor, "b l"]
    attention_mask: Bool[Tensor, "b l"]
    labels: Int[Tensor, "b l"]
    weights: Float[Tensor, "b l"]
    segments: Int[Tensor, "b l"]
    robot: Int[Tensor, "b"]
    state: Float[Tensor, "b s"]
    points: Float[Tensor, "b p 3"]
    source: tuple[str, ...]


@dataclass
class _Row:
    """A row under construction; `segment` is the turn that tokens are added to."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    segment: int = 0
    robot: int = -1
    state: Float[np.ndarray, "s"] | None = None
    points: Float[np.ndarray, "p 2"] | None = None

    def add(
        self, ids: Sequence[int], labels: Sequence[int] | None = None, shared: bool = False, weight: float = 1.0
    ) -> None:
        self.ids += ids
        self.labels += [IGNORE] * len(ids) if labels is None else labels
        self.weights += [weight] * len(ids)
        self.segments += [0 if shared else self.segment] * len(ids)


def point_features(percent: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b 3"]:
    """What the model is told of points that it said in whole percent: (x, y in [-1, 1], 1); zeros for none (-1)."""
    seen = (percent >= 0).all(-1, keepdim=True)
    return torch.cat([(percent + 0.5) * (2 / POINT_SCALE) - 1, torch.ones_like(percent[..., :1])], -1) * seen


def percent(points: Float[np.ndarray, "p 2"]) -> Float[np.ndarray, "p 2"]:
    """Whole percent, as the tokens say; -1 for a point that is unknown or not in its image."""
    seen = ((points >= 0) & (points < 1)).all(1, keepdims=True)
    return np.where(seen, np.floor(np.nan_to_num(points) * POINT_SCALE), -1.0)


class Processor:
    """Builds batches for one backbone, and reads its tokens.

    `robots` are those that the model drives, told apart by their embodiments' names; a pure VLM has none. They share
    the action rows and the horizon, each has its own normalisation. Raises InputError when they cannot.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        image_size: int,
        tokens_per_image: int,
        robots: Sequence[RobotSpec] = (),
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.25, 0.25, 0.25),
    ) -> None:
        check_together(robots)
        self.tokenizer, self.robots = tokenizer, tuple(robots)
        self.image_size, self.tokens_per_image = image_size, tokens_per_image
        self.mean, self.std = tuple(mean), tuple(std)
        self.pad, self.bos, self.eos, self.image, self.answer = (tokenizer.token_to_id(t) for t in SPECIAL_TOKENS)
        self.text_vocab: int = tokenizer.get_vocab_size()
        # What stands where an action is to be predicted: the row after those of the bins.
        self.blank = self.text_vocab + (robots[0].bins.vocab_size if robots else 0)
        # "<image>" in a user's text is text: it must not open a place for an image.
        tokenizer.encode_special_tokens = True
        self.points = [tokenizer.token_to_id(token) for token in POINT_TOKENS]
        self.has_points = None not in self.points
        self._encode = lru_cache(maxsize=65536)(self._encode_text)

    def robot(self, name: str = "") -> RobotSpec:
        """The robot of that name; without one, the only robot that there is. Raises InputError when there is none."""
        if not self.robots:
            raise InputError("this checkpoint is a vision-language model without actions: train it on demonstrations")
        known = {robot.name: robot for robot in self.robots}
        if not name and len(known) > 1:
            raise InputError(f"this model drives {', '.join(known)}: say which")
        if name and name not in known:
            raise InputError(f"this model drives {', '.join(known)}, not {name}")
        return known[name] if name else self.robots[0]

    def _encode_text(self, text: str) -> tuple[int, ...]:
        """Tokens of the text, a space before it; each pair of numbers below 100 in it is a point."""
        if not self.has_points:
            return tuple(self.tokenizer.encode(" " + text, add_special_tokens=False).ids)
        ids: list[int] = []
        for part in POINT.split(text):
            if match := POINT.fullmatch(part):
                ids += (self.points[int(value)] for value in match[0].split())
            elif part.strip():
                ids += self.tokenizer.encode(" " + part.strip(), add_special_tokens=False).ids
        return tuple(ids)

    @property
    def state_width(self) -> int:
        """Components of the largest state."""
        return max((len(robot.embodiment.state) for robot in self.robots), default=0)

    @property
    def points_width(self) -> int:
        return max((robot.points for robot in self.robots), default=0)

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Training rows, padded on the right. Raises InputError when an example does not fit its embodiment."""
        images = [e.images if e.state is None else _views(self.robot(e.embodiment), e.images) for e in examples]
        rows = []
        for example, views in zip(examples, images, strict=True):
            row = self._opening(len(views))
            self._turn(row, example.prompt)
            self._target(row, example)
            for prompt, target in example.turns:
                self._turn(row, prompt, shared=example.conversation)
                self._answer(row, target)
            rows.append(row)
        return self._collate(rows, images, tuple(e.source for e in examples), left=False)

    def robot_prompt(self, observations: Sequence[Observation], embodiment: str = "") -> Batch:
        """Rows that end where the answer is to be decoded, all of one robot (see `robot`); padded on the left.

        Raises InputError when a camera is missing, or the state does not fit the embodiment.
        """
        robot = self.robot(embodiment)
        images = [_views(robot, observation.images) for observation in observations]
        rows = []
        for observation, views in zip(observations, images, strict=True):
            rows.append(self._opening(len(views)))
            self._turn(rows[-1], observation.instruction)
            self._situation(rows[-1], robot, observation.state)
        return self._collate(rows, images, ("",) * len(rows), left=True)

    def question_prompt(self, questions: Sequence[str], images: Sequence[Views]) -> Batch:
        """Rows that end where the answer is to be decoded; padded on the left."""
        rows = []
        for question, views in zip(questions, images, strict=True):
            rows.append(self._opening(len(views)))
            self._turn(rows[-1], question)
        return self._collate(rows, images, ("",) * len(rows), left=True)

    def text(self, ids: Sequence[int]) -> str:
        """The text of these tokens; coordinates are written as numbers, "x y"."""
        values = {token: str(value) for value, token in enumerate(self.points)} if self.has_points else {}
        parts = []
        for is_point, run in groupby(ids, values.__contains__):
            run_ids = list(run)
            text = self.tokenizer.decode(run_ids, skip_special_tokens=True)
            parts.append(" ".join(values[i] for i in run_ids) if is_point else str(text).strip())
        return " ".join(part for part in parts if part)

    def action_ids(
        self, robot: RobotSpec, actions: Float[np.ndarray, "h a"], state: Float[np.ndarray, "s"]
    ) -> list[int]:
        """Tokens of actions that start from `state`."""
        return [self.text_vocab + int(bin) for bin in robot.encode_actions(actions, state)]

    def _opening(self, images: int) -> _Row:
        row = _Row()
        row.add([self.bos] + [self.image] * (images * self.tokens_per_image), shared=True)
        return row

    def _turn(self, row: _Row, prompt: str, shared: bool = False) -> None:
        """Adds a prompt; not `shared`, the turn is a segment of its own."""
        row.segment += not shared
        row.add([*self._encode(prompt.strip()), self.answer])

    def _answer(self, row: _Row, text: str) -> None:
        answer = [*self._encode(text.strip()), self.eos]
        row.add(answer, answer)

    def _target(self, row: _Row, example: Example) -> None:
        """Adds an example's text, or its points and its actions."""
        if isinstance(example.target, str):
            self._answer(row, example.target)
            return
        if example.state is None:
            raise InputError("an example with actions needs the state that they start from")
        robot = self.robot(example.embodiment)
        self._situation(row, robot, example.state)
        where = _points_of(robot, example)
        row.points = percent(where)
        points = [self.eos if v < 0 else self.points[int(v)] for v in row.points.flat]
        row.add(points, np.where(np.isnan(where).ravel(), IGNORE, points).tolist(), weight=POINT_WEIGHT)
        ids, steps = self.action_ids(robot, example.target, example.state), len(example.target)
        wanted = np.arange(steps) >= example.given
        if example.mask is not None:
            wanted &= example.mask
        known = example.given * robot.width
        # No action is told another: each must be read off the images, not off the one before it.
        inputs = [*ids[:known], *[self.blank] * (len(ids) - known), self.eos]
        # A label belongs to the token before it: the blank itself.
        row.add(inputs, [IGNORE, *np.where(np.repeat(wanted, robot.width), ids, IGNORE).tolist()])

    def _situation(self, row: _Row, robot: RobotSpec, state: Float[np.ndarray, "s"]) -> None:
        row.robot, row.state = self.robots.index(robot), robot.encode_state(state)

    def _collate(
        self,
        rows: Sequence[_Row],
        images: Sequence[Views],
        source: tuple[str, ...],
        left: bool,
    ) -> Batch:
        length = max(len(row.ids) for row in rows)
        input_ids = np.full((len(rows), length), self.pad)
        labels = np.full((len(rows), length), IGNORE)
        attention = np.zeros((len(rows), length), bool)
        segments = np.zeros((len(rows), length), np.int64)
        weights = np.ones((len(rows), length), np.float32)
        robot = np.array([row.robot for row in rows])
        state = np.zeros((len(rows), self.state_width), np.float32)
        points = np.full((len(rows), self.points_width, 2), -1, np.float32)
        for i, row in enumerate(rows):
            span = slice(length - len(row.ids), length) if left else slice(0, len(row.ids))
            input_ids[i, span], labels[i, span], attention[i, span] = row.ids, row.labels, True
            weights[i, span] = row.weights
            segments[i, span] = row.segments if row.segment > 1 else 0
            if row.state is not None:
                state[i, : len(row.state)] = row.state
            if row.points is not None:
                points[i, : len(row.points)] = row.points
        most = max(1, max(len(views) for views in images))
        pixels = np.zeros((len(rows), most, self.image_size, self.image_size, 3), np.uint8)
        image_mask = np.zeros((len(rows), most), bool)
        for i, views in enumerate(images):
            for j, image in enumerate(views.values()):
                pixels[i, j], image_mask[i, j] = resize(image, self.image_size), True
        return Batch(
            images=torch.from_numpy(pixels),
            image_mask=torch.from_numpy(image_mask),
            input_ids=torch.from_numpy(input_ids),
            attention_mask=torch.from_numpy(attention),
            labels=torch.from_numpy(labels),
            weights=torch.from_numpy(weights),
            segments=torch.from_numpy(segments),
            robot=torch.from_numpy(robot),
            state=torch.from_numpy(state),
            points=point_features(torch.from_numpy(points)),
            source=source,
        )

    def pixels(self, images: UInt8[Tensor, "*b h w 3"]) -> Float[Tensor, "*b 3 h w"]:
        """(x / 255 - mean) / std per channel, channels first; on the device where the images are."""
        mean, std = (torch.tensor(values, device=images.device) for values in (self.mean, self.std))
        return (images * (1 / 255 / std) - mean / std).movedim(-1, -3).contiguous()

    def save(self, folder: Path) -> None:
        self.tokenizer.save(str(folder / "tokenizer.json"))
        values = {
            "image_size": self.image_size,
            "tokens_per_image": self.tokens_per_image,
            "mean": self.mean,
            "std": self.std,
            "robots": [asdict(robot) for robot in self.robots],
        }
        (folder / "processor.json").write_text(json.dumps(values, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Processor:
        values = json.loads((folder / "processor.json").read_text())
        if "robot" in values:  # of before there were several; its hash told of the actions alone
            robot = values.pop("robot")
            values["robots"] = [] if robot is None else [robot | {"statistics_hash": ""}]
        robots = [RobotSpec.from_dict(robot) for robot in values.pop("robots")]
        return cls(Tokenizer.from_file(str(folder / "tokenizer.json")), robots=robots, **values)


def _views(robot: RobotSpec, images: Views) -> dict[str, Image]:
    """The embodiment's cameras, in its order."""
    cameras = robot.embodiment.cameras
    for camera in cameras:
        if camera not in images:
            raise InputError(f"camera {camera} is missing from the observation, which has {list(images)}")
    return {camera: images[camera] for camera in cameras}


def _points_of(robot: RobotSpec, example: Example) -> Float[np.ndarray, "p 2"]:
    """The points that the model is to say, NaN where unknown; none for a model that says none."""
    if example.points is None or robot.points == 0:
        return np.full((robot.points, 2), np.nan)
    if len(example.points) != robot.points:
        raise InputError(f"an example has {len(example.points)} points, not the {robot.points} that the model says")
    return example.points

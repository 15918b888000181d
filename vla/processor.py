"""From examples and observations to token batches and back: the one path, saved with the weights.

A row is a conversation as `ChatFormat` says: of nano `<bos> image… image… prompt <answer> target <eos> [prompt …]`.
Each image is `tokens_per_image` placeholders; the rows beyond the text vocabulary are the head's, a blank the last.
An action target is first where what the prompt names is in the images, if the data know it, one coordinate after the
other (as MolmoAct and embodied chain-of-thought reason before they act); then what the head says of the actions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import groupby, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from tokenizers import Tokenizer
from torch import Tensor

from vla.actions.bins import UniformBins
from vla.batch import IGNORE, Batch, Frames, Row, collate, own_frames
from vla.chat import ChatFormat, Part, encode_whole, token_id
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.heads.build import build_head, stored_settings
from vla.heads.parallel import ParallelHead
from vla.heads.protocol import Head, Vocabulary
from vla.images import Size
from vla.points import arrange_points
from vla.robot_spec import RobotSpec, check_together
from vla.scene import POINT_SCALE
from vla.stored_image import StoredViews, decoded
from vla.types import Example, Observation
from vla.vlm import tiling

PAD, BOS, EOS, IMAGE, ANSWER = SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<image>", "<answer>")
UNKNOWN_DRAWN = 0.5
"""The share of training rows whose unknown points are drawn at random, still without a loss; else they are not in the
image. A trained model says points where its data knew none, too: its actions there must not follow them."""
POINT_TOKENS = tuple(f"<{i}%>" for i in range(POINT_SCALE))
"""Coordinates of points, where the tokenizer has them (as PaliGemma's location tokens); else points are plain text."""
POINT = re.compile(r"(\b\d{1,2} \d{1,2}\b)")
STATE_TEXT = UniformBins(256, 1.0)
"""How a state is written out where it is text (pi0.5)."""


def percent(points: Float[np.ndarray, "p 2"]) -> Float[np.ndarray, "p 2"]:
    """Whole percent, as the tokens say; -1 for a point that is unknown or not in its image."""
    seen = ((points >= 0) & (points < 1)).all(1, keepdims=True)
    return np.where(seen, np.floor(np.nan_to_num(points) * POINT_SCALE), -1.0)


class Processor:
    """Builds batches for one backbone, and reads its tokens.

    `robots` are those that the model drives, told apart by their embodiments' names; a pure VLM has none. They share
    the action rows and the horizon, each has its own normalisation. Raises InputError when they cannot.
    `head` is the settings of how actions are said; `state_as` says whether a robot's state is told as "numbers" or
    written out as "text" in the prompt (pi0.5). `chat` is the format of the backbone's conversations, `image` and
    `pad` are its tokens for these, and `text_vocab` its rows without those of the head; without them they are the
    tokenizer's own. Of an image that comes with questions up to `tiles` pieces are seen, and the whole (`tiles`).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        image_size: Size,
        tokens_per_image: int,
        robots: Sequence[RobotSpec] = (),
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.25, 0.25, 0.25),
        head: Mapping[str, Any] = ParallelHead.settings,
        state_as: str = "numbers",
        chat: ChatFormat | None = None,
        image: int | None = None,
        pad: int | None = None,
        text_vocab: int | None = None,
        tiles: int = 1,
    ) -> None:
        check_together(robots)
        if state_as not in ("numbers", "text"):
            raise InputError(f"a state is told as numbers or as text, not as {state_as}")
        if tiles < 1:
            raise InputError(f"an image is seen in at least one piece: tiles is {tiles}")
        self.tokenizer, self.robots = tokenizer, tuple(robots)
        self.image_size, self.tokens_per_image = image_size, tokens_per_image
        self.mean, self.std = tuple(mean), tuple(std)
        self.chat = chat = chat or ChatFormat()
        self.pad = token_id(tokenizer, PAD) if pad is None else pad
        self.image = token_id(tokenizer, IMAGE) if image is None else image
        self.eos = token_id(tokenizer, chat.end)
        self._begin = encode_whole(tokenizer, chat.begin)
        self._question, self._again = (Part.before(tokenizer, text) for text in (chat.question, chat.again))
        self._answer_part = Part.after(tokenizer, chat.answer)
        self.text_vocab: int = tokenizer.get_vocab_size() if text_vocab is None else text_vocab
        self.state_as, self.tiles = state_as, tiles
        self.tasks: tuple[str, ...] = ()
        """The simulated tasks that it was trained on, by the names of `vla.envs.make`; saved, as all that is here."""
        self.head: Head | None = None
        if robots:
            self.head = build_head(head, Vocabulary(tokenizer, self.text_vocab, self.robots, self.pad, self.eos))
        # What asks for an action: the row after those of the head.
        self.blank = self.text_vocab + (self.head.rows if self.head else 0)
        self.points = [tokenizer.token_to_id(token) for token in POINT_TOKENS]
        self.has_points = None not in self.points
        self._begin_encoding()

    def _begin_encoding(self) -> None:
        # "<image>" in a user's text is text: it must not open a place for an image.
        self.tokenizer.encode_special_tokens = True
        self._encode = lru_cache(maxsize=65536)(self._encode_text)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_encode"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a process that builds batches beside others."""
        self.__dict__.update(state)
        self._begin_encoding()

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

    def robot_for(self, body: Embodiment) -> RobotSpec:
        """The robot that `body` is: that of its kind (`Embodiment.check`), whatever its name where there is only one.

        Where none is of its kind it is that of its name, or the only one, as `robot` says.
        """
        alike = [robot for robot in self.robots if is_like(robot.embodiment, body)]
        named = [robot for robot in alike if robot.name == body.name]
        if len(alike) > 1 and not named:
            names = ", ".join(robot.name for robot in alike)
            raise InputError(
                f"this model drives {names}, which are all of the kind of {body.name}: use one of the names"
            )
        several = len(self.robots) > 1
        return (named or alike or [self.robot(body.name if several else "")])[0]

    def _encode_text(self, text: str, behind: str = "") -> tuple[int, ...]:
        """Tokens of the text and of what is `behind` it; each pair of numbers below 100 in the text is a point."""
        if not self.has_points:
            return tuple(self.tokenizer.encode(text + behind, add_special_tokens=False).ids)
        ids: list[int] = []
        for part in POINT.split(text):
            if match := POINT.fullmatch(part):
                ids += (self.points[int(value)] for value in match[0].split())
            elif part.strip():
                ids += self.tokenizer.encode(" " + part.strip(), add_special_tokens=False).ids
        return (*ids, *self.tokenizer.encode(behind, add_special_tokens=False).ids)

    @property
    def state_width(self) -> int:
        """Components of the largest state that is told as numbers."""
        if self.state_as == "text":
            return 0
        return max((len(robot.embodiment.state) for robot in self.robots), default=0)

    @property
    def points_width(self) -> int:
        return max((robot.points for robot in self.robots), default=0)

    def batch(
        self, examples: Sequence[Example], rngs: Sequence[np.random.Generator] = (), frames: Frames = own_frames
    ) -> Batch:
        """Training rows, padded on the right. Raises InputError when an example does not fit its embodiment.

        What is drawn in training for a row comes from its own of `rngs`, where there are any. The images lie in what
        `frames` gives.
        """
        images = [
            self._pieces(e.images) if e.state is None else _views(self.robot(e.embodiment), e.images) for e in examples
        ]
        rows = []
        for example, views, rng in zip(examples, images, rngs or repeat(None), strict=bool(rngs)):
            row = self._opening(len(views))
            if rng is not None:
                row.seed = int(rng.integers(2**62))
            if isinstance(example.target, str):
                self._turn(row, example.prompt)
                self._answer(row, example.target)
            else:
                self._act(row, example, rng)
            for prompt, target in example.turns:
                self._turn(row, prompt, later=example.conversation)
                self._answer(row, target)
            rows.append(row)
        return self._collate(rows, images, tuple(e.source for e in examples), left=False, frames=frames)

    def robot_prompt(self, observations: Sequence[Observation], embodiment: str = "") -> Batch:
        """Rows that end where the answer is to be decoded, all of one robot (see `robot`); padded on the left.

        Raises InputError when a camera is missing, or the state does not fit the embodiment.
        """
        robot = self.robot(embodiment)
        images = [_views(robot, observation.images) for observation in observations]
        rows = []
        for observation, views in zip(observations, images, strict=True):
            rows.append(self._opening(len(views)))
            self._ask(rows[-1], robot, observation.instruction, observation.state)
        return self._collate(rows, images, ("",) * len(rows), left=True)

    def question_prompt(self, questions: Sequence[str], images: Sequence[StoredViews]) -> Batch:
        """Rows that end where the answer is to be decoded; padded on the left."""
        rows, images = [], [self._pieces(views) for views in images]
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

    def _pieces(self, images: StoredViews) -> StoredViews:
        """Each image as its tiles, where there may be several."""
        if self.tiles == 1:
            return images
        cut = {name: tiling.tiles(image, self.image_size, self.tiles) for name, image in decoded(images).items()}
        return {f"{name}/{i}": piece for name, pieces in cut.items() for i, piece in enumerate(pieces)}

    def _opening(self, images: int) -> Row:
        row = Row()
        row.add([*self._begin, *[self.image] * (images * self.tokens_per_image)], shared=True)
        return row

    def _turn(self, row: Row, prompt: str, later: bool = False, more: str = "") -> None:
        """Adds a prompt, with `more` at its end; a turn that is not `later` in a conversation is its own segment."""
        if self.chat.prefix_lm and row.segment:
            raise InputError("a prefix-LM sees its whole prompt at once, so a row asks it one question: set turns=1")
        before = self._again if later else self._question
        words = self._encode(before.text + prompt.strip(), more + self._answer_part.text)
        row.segment += not later
        row.add([*before.ids, *words, *self._answer_part.ids], shared=self.chat.prefix_lm)

    def _answer(self, row: Row, text: str) -> None:
        answer = [*self._encode(self.chat.reply + text.strip()), self.eos]
        row.add(answer, answer)

    def _ask(self, row: Row, robot: RobotSpec, prompt: str, state: Float[np.ndarray, "s"]) -> None:
        """Adds what a robot in this state is asked to do."""
        row.robot, told = self.robots.index(robot), robot.encode_state(state)
        if self.state_as == "numbers":
            row.state = told
            self._turn(row, prompt)
            return
        self._turn(row, prompt, more=" state " + " ".join(map(str, STATE_TEXT.encode(told[None]))))

    def _act(self, row: Row, example: Example, rng: np.random.Generator | None) -> None:
        """Adds what a robot is asked to do, its points and its actions."""
        if example.state is None or isinstance(example.target, str):
            raise InputError("an example with actions needs the state that they start from")
        robot = self.robot(example.embodiment)
        self._ask(row, robot, example.prompt, example.state)
        where = _points_of(robot, example)
        row.points = percent(where)
        if rng is not None and (unknown := np.isnan(where).any(1)).any() and rng.random() < UNKNOWN_DRAWN:
            row.points[unknown] = rng.integers(POINT_SCALE, size=(unknown.sum(), 2))
        points = [self.eos if v < 0 else self.points[int(v)] for v in row.points.flat]
        row.add(points, np.where(np.isnan(where).ravel(), IGNORE, points).tolist())
        row.actions, row.given = robot.normalize_actions(example.target, example.state), example.given
        row.prefix = len(row.ids)
        inside = np.ones(len(row.actions), bool) if example.mask is None else example.mask
        assert self.head is not None
        target = self.head.target(robot, row.actions, inside, example.given, rng)
        row.add(target.inputs, target.labels)
        row.regressed = target.regressed

    def _collate(
        self,
        rows: Sequence[Row],
        images: Sequence[StoredViews],
        source: tuple[str, ...],
        left: bool,
        frames: Frames = own_frames,
    ) -> Batch:
        return collate(
            rows,
            images,
            source,
            pad=self.pad,
            image_size=self.image_size,
            state_width=self.state_width,
            points_width=self.points_width,
            chunk=(self.robots[0].horizon, max(r.width for r in self.robots)) if self.robots else (0, 0),
            left=left,
            segmented=self.chat.prefix_lm,
            frames=frames,
        )

    def pixels(self, images: UInt8[Tensor, "*b h w 3"]) -> Float[Tensor, "*b 3 h w"]:
        """(x / 255 - mean) / std per channel, channels first; on the device where the images are."""
        channels_first = images.movedim(-1, -3)
        mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (self.mean, self.std))
        out = torch.empty(channels_first.shape, device=images.device)
        # Image by image on a CPU: each stays in its cache.
        shape = (-1, *out.shape[-3:]) if images.device.type == "cpu" else (1, *out.shape)
        for part, image in zip(out.view(shape), channels_first.reshape(shape), strict=True):
            part.copy_(image).mul_(1 / 255 / std).sub_(mean / std)
        return out

    def save(self, folder: Path) -> None:
        self.tokenizer.save(str(folder / "tokenizer.json"))
        values: dict[str, Any] = {
            "image_size": self.image_size,
            "tokens_per_image": self.tokens_per_image,
            "mean": self.mean,
            "std": self.std,
            "robots": [robot.to_dict() for robot in self.robots],
            "state_as": self.state_as,
            "chat": asdict(self.chat),
            "image": self.image,
            "pad": self.pad,
            "text_vocab": self.text_vocab,
            "tiles": self.tiles,
            "tasks": self.tasks,
        }
        if self.head is not None:
            values["head"] = self.head.settings
        (folder / "processor.json").write_text(json.dumps(values, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Processor:
        values = json.loads((folder / "processor.json").read_text())
        if "robot" in values:  # of before there were several; its hash told of the actions alone
            robot = values.pop("robot")
            values["robots"] = [] if robot is None else [robot | {"statistics_hash": ""}]
        robots = [RobotSpec.from_dict(robot) for robot in values.pop("robots")]
        chat, tasks = ChatFormat(**values.pop("chat", {})), values.pop("tasks", ())
        if "head" in values:
            values["head"] = stored_settings(values["head"])
        found = cls(Tokenizer.from_file(str(folder / "tokenizer.json")), robots=robots, chat=chat, **values)
        found.tasks = tuple(tasks)
        return found

    def with_robots(
        self, robots: Sequence[RobotSpec], head: Mapping[str, Any], state_as: str, tiles: int = 1
    ) -> Processor:
        """The same for a model that drives these robots."""
        made = Processor(
            self.tokenizer,
            self.image_size,
            self.tokens_per_image,
            robots,
            self.mean,
            self.std,
            head,
            state_as,
            self.chat,
            self.image,
            self.pad,
            self.text_vocab,
            tiles,
        )
        made.tasks = self.tasks
        return made


def is_like(one: Embodiment, other: Embodiment) -> bool:
    """Whether the two are one kind of robot (`Embodiment.check`)."""
    try:
        one.check(other)
        return True
    except InputError:
        return False


def _views(robot: RobotSpec, images: StoredViews) -> StoredViews:
    """The embodiment's cameras, in its order."""
    cameras = robot.embodiment.cameras
    for camera in cameras:
        if camera not in images:
            raise InputError(f"camera {camera} is missing from the observation, which has {list(images)}")
    return {camera: images[camera] for camera in cameras}


def _points_of(robot: RobotSpec, example: Example) -> Float[np.ndarray, "p 2"]:
    """The points that the model says, each of its camera and thing; NaN where the example does not know it."""
    if example.points is None or robot.points == 0:
        return np.full((robot.points, 2), np.nan)
    return arrange_points(example.points, tuple(example.images), robot.embodiment.cameras, robot.points)

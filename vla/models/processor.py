"""Converts examples and observations to token batches, and tokens back to text. It is saved with the weights.

A row is a conversation in the `ChatFormat`; for nano `<bos> image… image… prompt <answer> target <eos> [prompt …]`.
Token ids after the text vocabulary are the head's; the last one is the action query token. An action target starts with
the image coordinates of the objects in the prompt, if the data contain them (as in MolmoAct and embodied
chain-of-thought); the head's target follows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import groupby, repeat
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from tokenizers import Tokenizer
from torch import Tensor

from vla.common.images import Size, sides
from vla.common.renamed_keys import PROCESSOR, current_keys
from vla.common.scene_objects import POINT_SCALE
from vla.common.stored_image import StoredViews
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.models.action_heads.action_head import ChunkTarget, Head, Vocabulary
from vla.models.action_heads.build import build_head, stored_settings
from vla.models.action_heads.fast import FastHead
from vla.models.action_heads.l1 import RegressionHead
from vla.models.action_heads.parallel import ParallelHead
from vla.models.action_tokenizers.bins import UniformBins
from vla.models.batch import IGNORE, Batch, Frames, Row, Shown, allocate_frames, collate
from vla.models.chat import ChatFormat
from vla.models.chat_encoder import ChatEncoder
from vla.models.choices import check_state_encoding
from vla.models.preprocessing.adapted import for_camera, with_tiles
from vla.models.preprocessing.earlier import earlier
from vla.models.preprocessing.frames import Pad
from vla.models.preprocessing.markup import Markup
from vla.models.preprocessing.on_device import OnDevice, normalized, resized
from vla.models.preprocessing.settings import Preprocessing
from vla.models.robot_choice import matching_robot, named_robot
from vla.models.robot_spec import RobotSpec, check_together
from vla.models.robot_views import percent, points_of, row_frames, shown_cameras
from vla.models.special_tokens import TextTokens
from vla.types import Example, Observation

UNKNOWN_DRAWN = 0.5
"""Share of training rows whose unknown points are replaced by random ones, without a loss; else they are "not in the
image". A trained model also predicts points for such data, and its actions must not depend on them."""
STATE_TEXT = UniformBins(256, 1.0)
"""Bins of a state that is written as text (pi0.5)."""


class Processor:
    """Builds batches for one backbone, and decodes its tokens.

    Args:
        image_size, tokens_per_image: size of an image and its number of tokens, where `images` is None.
        robots: the robots that the model controls, none for a VLM. They share action tokens and horizon.
        mean, std: of pixels, per channel.
        head: settings of the action head.
        state_encoding: "numbers" for conditioning values, or "text" in the prompt (pi0.5).
        chat: format of the backbone's conversations.
        tokens: text tokens; by default nano's, from the tokenizer.
        tiles: maximum number of tiles of a question's image (None: the backbone's); `RobotSpec` has the cameras'.
        images: preprocessing of images.

    Raises:
        InputError: for robots that cannot share a model, or an unknown `state_encoding`.
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
        state_encoding: str = "numbers",
        chat: ChatFormat | None = None,
        tokens: TextTokens | None = None,
        tiles: int | None = None,
        images: Preprocessing | None = None,
    ) -> None:
        check_together(robots)
        check_state_encoding(state_encoding)
        self.tokenizer, self.robots = tokenizer, tuple(robots)
        self.image_size, self.tokens_per_image = image_size, tokens_per_image
        self.mean, self.std = tuple(mean), tuple(std)
        self.chat = chat = chat or ChatFormat()
        self.tokens = tokens = tokens or TextTokens.of(tokenizer)
        self.image, self.pad, self.text_vocab = tokens.image, tokens.pad, tokens.text_vocab
        self.images = images or Preprocessing(Pad(sides(image_size)), Markup(tokens=tokens_per_image))
        self.shown = with_tiles(self.images, tiles)
        self.policy = policy = chat.policy
        camera_images = self.images if policy is None else policy.cameras
        self.cameras = tuple(for_camera(camera_images, robot.images, robot.image_tokens) for robot in robots)
        self.encoder = ChatEncoder(tokenizer, chat, self.image)
        self.eos = self.encoder.ends[0][-1]
        self.state_encoding, self.tiles = state_encoding, tiles
        self.tasks: tuple[str, ...] = ()
        """Names (`vla.envs.make`) of the simulated tasks on which the model was trained."""
        self.head: Head | None = None
        self._chunk_shape = (0, 0)
        if robots:
            width = 0 if policy is None else policy.width
            vocabulary = Vocabulary(tokenizer, self.text_vocab, self.robots, self.pad, self.eos, width)
            self.head = build_head(head, vocabulary)
            self._chunk_shape = vocabulary.horizon, vocabulary.action_dim
        # The action query token follows the head's tokens.
        self.action_query_token = self.text_vocab + (self.head.vocab_size if self.head else 0)
        self.points, self.has_points = self.encoder.points, self.encoder.has_points
        self._reported: set[tuple[str, tuple[str, ...]]] = set()
        """Robots and their missing cameras that have been reported."""

    def robot(self, name: str = "") -> RobotSpec:
        """The robot with this name, or the only robot. Raises InputError when there is none, or several."""
        return named_robot(self.robots, name)

    def robot_for(self, body: Embodiment) -> RobotSpec:
        """The robot that matches an embodiment (`robot_choice.matching_robot`)."""
        return matching_robot(self.robots, body)

    @property
    def state_width(self) -> int:
        """Largest number of state components among the robots, or the policy's; 0 for states as text."""
        if self.state_encoding == "text" or (self.policy is not None and self.policy.state in ("text", "none")):
            return 0
        width = 0 if self.policy is None else self.policy.width
        return width or max((len(robot.embodiment.state) for robot in self.robots), default=0)

    @property
    def state_in_prompt(self) -> bool:
        """Whether a token of a robot's prompt is its state: the last (SmolVLA) or that after the images (OFT)."""
        return bool(self.robots) and self.policy is not None and self.policy.state in ("prompt", "image")

    @property
    def points_width(self) -> int:
        """Largest number of points among the robots."""
        return max((robot.points for robot in self.robots), default=0)

    def batch(
        self, examples: Sequence[Example], rngs: Sequence[np.random.Generator] = (), frames: Frames = allocate_frames
    ) -> Batch:
        """A training batch, padded on the right.

        Args:
            rngs: a generator per row for its random numbers in training, if any.
            frames: allocates the images.

        Raises:
            InputError: when an example does not fit its embodiment.
        """
        rows, images = [], []
        for example, rng in zip(examples, rngs or repeat(None), strict=bool(rngs)):
            robot = None if example.state is None else self.robot(example.embodiment)
            row, shown = self._opening(example.images, robot, example.past)
            images.append(shown)
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
        """A batch of prompts for decoding actions of one robot (see `robot`), padded on the left.

        The first observation with missing cameras prints a line.

        Raises:
            InputError: when a required camera is missing, the number of past frames differs from the robot's history,
                or the state does not fit the embodiment.
        """
        robot = self.robot(embodiment)
        rows, images = [], []
        for observation in observations:
            self._report_missing(robot, observation)
            row, shown = self._opening(observation.images, robot, observation.past)
            self._append_request(row, robot, observation.instruction, observation.state)
            row.add(self.head.begin if isinstance(self.head, FastHead) else [])
            rows.append(row)
            images.append(shown)
        return self._collate(rows, images, ("",) * len(rows), left=True)

    def question_prompt(self, questions: Sequence[str], images: Sequence[StoredViews]) -> Batch:
        """A batch of prompts for decoding answers to questions about images, padded on the left."""
        rows, all_shown = [], []
        for question, views in zip(questions, images, strict=True):
            row, shown = self._opening(views)
            self._turn(row, question)
            rows.append(row)
            all_shown.append(shown)
        return self._collate(rows, all_shown, ("",) * len(rows), left=True)

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids; coordinates are written as numbers, "x y"."""
        values = {token: str(value) for value, token in enumerate(self.points)} if self.has_points else {}
        texts = []
        for is_point, run in groupby(ids, values.__contains__):
            run_ids = list(run)
            text = self.tokenizer.decode(run_ids, skip_special_tokens=True)
            texts.append(" ".join(values[i] for i in run_ids) if is_point else str(text).strip())
        return " ".join(text for text in texts if text)

    def _opening(
        self, views: StoredViews, robot: RobotSpec | None = None, past: Sequence[StoredViews] = ()
    ) -> tuple[Row, list[Shown]]:
        """A row up to its first prompt, of a question or of a robot, and its images."""
        preprocessing = self.shown if robot is None else self.cameras[self.robots.index(robot)]
        images = list(views.values()) if robot is None else [image for _, image in row_frames(robot, views, past)]
        preprocessing = preprocessing.among(len(images))
        shown = [Shown(image, preprocessing.view(*image.shape[:2])) for image in images]
        markup = tuple(preprocessing.parts(one.view, number) for number, one in enumerate(shown, 1))
        row = Row(bare=not shown)
        written = robot is None or self.policy is None or self.policy.prompt.opened
        row.add(self.encoder.opening(markup) if written else self.encoder.images(markup), shared=True)
        if robot is not None and self.policy is not None and self.policy.views > len(shown):
            numbers, view = range(len(shown) + 1, self.policy.views + 1), preprocessing.view(*sides(self.image_size))
            self.encoder.add_missing(row, [preprocessing.parts(view, number) for number in numbers], self.pad)
        return row, shown

    def _report_missing(self, robot: RobotSpec, observation: Observation) -> None:
        cameras = robot.embodiment.cameras
        missing = (robot.name, tuple(camera for camera in cameras if camera not in observation.images))
        if missing[1] and missing not in self._reported and shown_cameras(robot, observation.images):
            self._reported.add(missing)
            print(f"{robot.name} acts without {', '.join(missing[1])}, of its cameras {', '.join(cameras)}", flush=True)

    def _turn(self, row: Row, prompt: str, later: bool = False, more: str = "") -> None:
        """Appends a prompt and `more`; unless it is a `later` turn of a conversation, it starts a new segment."""
        if self.chat.prefix_lm and row.segment:
            raise InputError("a prefix-LM reads its prompt bidirectionally, so a row has one question: set turns=1")
        row.segment += not later
        row.add(self.encoder.turn(prompt, later=later, bare=row.bare, more=more), shared=self.chat.prefix_lm)

    def _answer(self, row: Row, text: str) -> None:
        answer = self.encoder.reply(text)
        row.add(answer, answer)

    def _append_request(self, row: Row, robot: RobotSpec, prompt: str, state: Float[np.ndarray, "s"]) -> None:
        """Appends a robot's instruction and state."""
        row.robot, encoded = self.robots.index(robot), robot.encode_state(state, clipped=self.policy is None)
        if self.policy is not None:
            encoded = np.clip(encoded, -1, 1) if self.policy.state == "image" else encoded
            row.state = encoded if self.state_width else None
            shared, token = self.chat.prefix_lm, [self.action_query_token] if self.state_in_prompt else []
            row.add(token if self.policy.state == "image" else [], shared=shared)
            row.add(self.policy.prompt.encode(self.tokenizer, prompt, encoded), shared=shared)
            row.add(self.head.prompt_tokens if isinstance(self.head, RegressionHead) else [], shared=shared)
            row.segment += 1
            row.add(token if self.policy.state == "prompt" else [])
            return
        if self.state_encoding == "numbers":
            row.state = encoded
            self._turn(row, prompt)
            return
        self._turn(row, prompt, more=" state " + " ".join(map(str, STATE_TEXT.encode(encoded[None]))))

    def _act(self, row: Row, example: Example, rng: np.random.Generator | None) -> None:
        """Appends a robot's instruction, state, points and actions."""
        if example.state is None or isinstance(example.target, str):
            raise InputError("an example with actions needs the state at their start")
        robot = self.robot(example.embodiment)
        self._append_request(row, robot, example.prompt, example.state)
        fractions = points_of(robot, example)
        row.points = percent(fractions)
        if rng is not None and (unknown := np.isnan(fractions).any(1)).any() and rng.random() < UNKNOWN_DRAWN:
            row.points[unknown] = rng.integers(POINT_SCALE, size=(unknown.sum(), 2))
        points = [self.eos if v < 0 else self.points[int(v)] for v in row.points.flat]
        row.add(points, np.where(np.isnan(fractions).ravel(), IGNORE, points).tolist())
        row.actions, row.prefix_length = robot.normalize_actions(example.target, example.state), example.prefix_length
        row.prompt_length = len(row.ids)
        inside = np.ones(len(row.actions), bool) if example.mask is None else example.mask
        assert self.head is not None
        target = self.head.target(ChunkTarget(robot, row.actions, inside, example.prefix_length, rng))
        row.add(target.inputs, target.labels)
        row.continuous_mask = target.continuous_mask

    def _collate(
        self,
        rows: Sequence[Row],
        images: Sequence[Sequence[Shown]],
        source: tuple[str, ...],
        left: bool,
        frames: Frames = allocate_frames,
    ) -> Batch:
        return collate(
            rows,
            images,
            source,
            pad=self.pad,
            min_frame=sides(self.image_size),
            state_width=self.state_width,
            points_width=self.points_width,
            chunk=self._chunk_shape,
            left=left,
            segmented=self.chat.prefix_lm,
            frames=frames,
        )

    def pixels(self, images: UInt8[Tensor, "*b h w 3"]) -> Float[Tensor, "*b 3 h w"]:
        """(x / 255 - mean) / std per channel, channels first, on the device of the images."""
        return normalized(images, self.mean, self.std)

    def placed(self, batch: Batch) -> tuple[Float[Tensor, "b k 3 h w"], Batch]:
        """The normalised pixels of a batch's images, and the batch with their places in the frames (`content`).

        A policy whose camera images are resized on the device has them in their own size until now.
        """
        framing = None if self.policy is None else self.policy.cameras.framing
        if not isinstance(framing, OnDevice):
            return self.pixels(batch.images), batch
        robots = batch.image_mask & (batch.robot >= 0)[:, None]
        masks = robots, batch.image_mask & ~robots
        pixels, content = resized(batch.images, masks, batch.content, framing, self.mean, self.std)
        return pixels, replace(batch, content=content)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that determines the tokens and pixels of a row and the end of its answer."""
        return hashlib.sha256(json.dumps([self.to_dict(), self.tokenizer.to_str()]).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The content of processor.json: everything except the tokenizer."""
        values: dict[str, Any] = {
            "image_size": self.image_size,
            "tokens_per_image": self.tokens_per_image,
            "mean": self.mean,
            "std": self.std,
            "robots": [robot.to_dict() for robot in self.robots],
            "state_encoding": self.state_encoding,
            "chat": self.chat.to_dict(),
            **asdict(self.tokens),
            "tiles": self.tiles,
            "images": self.images.to_dict(),
            "tasks": self.tasks,
        }
        if self.head is not None:
            values["head"] = self.head.settings
        return values

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json and processor.json into `folder`, which must exist."""
        self.tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "processor.json").write_text(json.dumps(self.to_dict(), indent=1))

    @classmethod
    def load(cls, folder: Path) -> Processor:
        """Loads a processor from the files that `save` writes, also those of earlier versions."""
        values = current_keys(json.loads((folder / "processor.json").read_text()), PROCESSOR)
        if "robot" in values:  # earlier versions had one robot, and a hash of the actions only
            robot = values.pop("robot")
            values["robots"] = [] if robot is None else [robot | {"statistics_hash": ""}]
        robots = [RobotSpec.from_dict(robot) for robot in values.pop("robots")]
        chat, tasks = ChatFormat.from_dict(values.pop("chat", {})), values.pop("tasks", ())
        if "head" in values:
            values["head"] = stored_settings(values["head"])
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        names = [name for name in ("image", "pad", "text_vocab") if name in values]
        tokens = TextTokens.of(tokenizer, **{name: values.pop(name) for name in names})
        if "images" in values:
            values["images"] = Preprocessing.from_dict(values["images"])
        elif (config := folder / "config.json").is_file():
            backbone = json.loads(config.read_text())["backbone"]
            values["images"] = earlier(backbone, tokenizer, values["image_size"], values["tokens_per_image"])
        found = cls(tokenizer, robots=robots, chat=chat, tokens=tokens, **values)
        found.tasks = tuple(tasks)
        return found

    def with_robots(
        self, robots: Sequence[RobotSpec], head: Mapping[str, Any], state_encoding: str, tiles: int | None = None
    ) -> Processor:
        """A copy for a model that controls these robots."""
        size, count = self.image_size, self.tokens_per_image
        kept: dict[str, Any] = {"mean": self.mean, "std": self.std, "chat": self.chat, "tokens": self.tokens}
        new: dict[str, Any] = {"head": head, "state_encoding": state_encoding, "tiles": tiles, "images": self.images}
        made = Processor(self.tokenizer, size, count, robots, **kept, **new)
        made.tasks = self.tasks
        return made

    def without_policy(self) -> Processor:
        """A copy for the vision-language model of a released policy alone."""
        size, chat = self.image_size, replace(self.chat, policy=None)
        values: dict[str, Any] = {"mean": self.mean, "std": self.std, "tokens": self.tokens, "images": self.images}
        return Processor(self.tokenizer, size, self.tokens_per_image, chat=chat, **values)

"""pi0-FAST (Pertsch et al. 2025, arXiv 2501.09747) as LeRobot stores it: PaliGemma that writes FAST tokens.

Its tokens are words of PaliGemma's vocabulary. So that the softmax is over the same words, the model has no further
ones: `<unk>`, which no text has, stands for images, and the last word is the action query token, which is not used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from vla.errors import InputError
from vla.models.action_heads.fast import FastLayout, to_json
from vla.models.action_tokenizers.fast import FastTokenizer
from vla.models.backbones import catalog
from vla.models.backbones.pretrained import make_processor
from vla.models.chat import encode_with_special, token_id
from vla.models.hub import fetch
from vla.models.policy_format import PolicyFormat, RobotPrompt
from vla.models.preprocessing.frames import Stretch
from vla.models.preprocessing.markup import Markup
from vla.models.preprocessing.settings import Preprocessing
from vla.models.processor import Processor
from vla.models.released.lerobot_folder import LeRobotFolder
from vla.models.released.pi import TOKENIZER, VLM, WORDS, paligemma
from vla.models.released.robot_policy import RobotPolicy, open_tokenizer
from vla.models.special_tokens import TextTokens

KIND = "pi0_fast"
SKIPPED = 128
"""Number of words at the end of the vocabulary, PaliGemma's for segmentation, before which FAST token 0 is."""
FIXED = {"fast_skip_tokens": SKIPPED, "temperature": 0.0}
"""Settings that are implemented with these values only; LeRobot's pipelines do not store another `fast_skip_tokens`."""
PROMPT, OPENING, END = "Task: {task}, State: {state};\n", "Action: ", "|"
TOKENIZER_STEP, TOKENIZER_NAME = "action_tokenizer_processor", "action_tokenizer_name"
FAST = "lerobot/fast-action-tokenizer"


def load_pi_fast(folder: LeRobotFolder) -> RobotPolicy:
    """Opens a folder of pi0-FAST.

    Raises:
        InputError: for settings, weights or tokenizers that are not supported.
    """
    config = folder.config
    folder.check_fixed(FIXED)
    weights = folder.weights()
    if other := [name for name in weights if not name.startswith(VLM)]:
        raise InputError(f"{other[0]} is only in the policy's weights or only in its architecture")
    weights = {name.removeprefix(VLM): weight for name, weight in weights.items()}
    if "lm_head.weight" not in weights:
        raise InputError(f"{folder.path} has no lm_head.weight, the output layer of the policy")
    weights.setdefault(WORDS, weights["lm_head.weight"])  # as LeRobot reads openpi's tied file
    tokenizer = open_tokenizer(folder.tokenizer(config.get("text_tokenizer_name", TOKENIZER)))
    actions = to_json(_action_tokenizer(folder))
    backbone: Any = paligemma(weights, _unknown(tokenizer))
    side, markup = backbone.image_size, Markup(tokens=backbone.tokens_per_image)
    source = folder.source(len(weights[WORDS]))
    format = PolicyFormat(
        RobotPrompt(PROMPT, cleaned=True, max_tokens=int(config.get("tokenizer_max_length", 200))),
        Preprocessing(folder.framing((side, side)), markup),
        state="text",
        source=source | {"action_tokenizer": digest(actions)} if source else {},
    )
    chat = {**catalog.family("paligemma").config()["chat"], "policy": format}
    made = make_processor(backbone, tokenizer, chat, Preprocessing(Stretch((side, side)), markup))
    processor = _without_further_words(made, backbone.vocab_size)
    return RobotPolicy.of_folder(
        folder,
        backbone=backbone,
        processor=processor,
        head={"kind": "fast", "tokenizer": actions, "layout": asdict(_layout(processor, tokenizer, config))},
        weights={},
    )


def digest(tokenizer: Mapping[str, Any]) -> str:
    """A hash of the settings of a FAST tokenizer, by which an export knows the policy's own."""
    return hashlib.sha256(json.dumps(tokenizer, sort_keys=True).encode()).hexdigest()


def _action_tokenizer(folder: LeRobotFolder) -> FastTokenizer:
    """The FAST tokenizer that the policy names."""
    name = str(folder.config.get(TOKENIZER_NAME) or FAST)
    encoding = folder.steps.get(TOKENIZER_STEP, {}).get("config", {}).get(TOKENIZER_NAME, name)
    if encoding != name:
        raise InputError(
            f"{folder.path}: {TOKENIZER_NAME} is {name} in config.json and {encoding} in policy_preprocessor.json: "
            "name one tokenizer in both"
        )
    try:
        return FastTokenizer.load(fetch(name))
    except InputError as error:
        raise InputError(
            f"the policy's action tokenizer {name} cannot be read ({error}): download it, and name its folder as "
            f"{TOKENIZER_NAME} in config.json and policy_preprocessor.json"
        ) from error


def _unknown(tokenizer: PreTrainedTokenizerFast) -> int:
    """The token that stands for images."""
    if tokenizer.unk_token_id is None or tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
        raise InputError("the policy's tokenizer lacks one of the tokens <unk>, <bos> and <eos>")
    return int(tokenizer.unk_token_id)


def _without_further_words(processor: Processor, rows: int) -> Processor:
    """The processor for a model whose last word is the action query token; words without a row are never text."""
    words, tokens = processor.tokenizer, processor.tokens
    further = [words.id_to_token(i) for i in range(rows, words.get_vocab_size())]
    words.add_special_tokens([AddedToken(word, special=True) for word in further if word is not None])
    return Processor(
        words,
        processor.image_size,
        processor.tokens_per_image,
        mean=processor.mean,
        std=processor.std,
        chat=processor.chat,
        tokens=TextTokens.of(words, tokens.image, tokens.pad, rows - 1),
        images=processor.images,
    )


def _layout(processor: Processor, tokenizer: PreTrainedTokenizerFast, config: Mapping[str, Any]) -> FastLayout:
    """The words of a chunk."""
    last = int(tokenizer.vocab_size) - 1 - SKIPPED
    if last >= processor.text_vocab:
        raise InputError(f"the policy has {processor.text_vocab + 1} words, its tokenizer {tokenizer.vocab_size}")
    words = processor.tokenizer
    return FastLayout(
        last=last,
        begin=[int(tokenizer.bos_token_id)],
        opening=list(encode_with_special(words, OPENING)),
        end=[token_id(words, END), int(tokenizer.eos_token_id)],
        max_tokens=int(config.get("max_action_tokens", 256)),
    )

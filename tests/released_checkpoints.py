"""Tiny random checkpoints of the released families as their makers publish them: weights, processor and chat template,
saved by transformers' own classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_families import MODELS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Blip2Processor,
    BlipImageProcessor,
    CLIPImageProcessor,
    GotOcr2ImageProcessor,
    IdeficsImageProcessor,
    IdeficsProcessor,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaProcessor,
    MllamaImageProcessor,
    MllamaProcessor,
    PaliGemmaProcessor,
    PixtralImageProcessor,
    PixtralProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    SiglipImageProcessor,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

ROWS = 400
"""Rows of each vocabulary: more than there are tokens."""
CLIP = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
SQUARE = {"size": {"height": 28, "width": 28}}
CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' and SYSTEM %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}IMAGE{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "llava": (
        "{% for m in messages %}{% if m.role != 'system' %}{{ m.role.upper() + ': ' }}{% endif %}"
        "{% for c in m.content %}"
        "{% if c.type == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}{% for c in m.content %}"
        "{% if c.type == 'text' %}{{ c.text + ' ' }}{% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "qwen": CHATML.replace("SYSTEM", "true").replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    "internvl": CHATML.replace("SYSTEM", "false").replace("IMAGE", "<IMG_CONTEXT>\n"),
    "smolvlm": (
        "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}{% if m.content[0].type == 'image' %}:{% else %}"
        "{{ ': ' }}{% endif %}{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% else %}<image>{% endif %}"
        "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    ),
    "pixtral": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{% endif %}{% for c in m.content %}"
        "{% if c.type == 'text' %}{{ c.text }}{% else %}[IMG]{% endif %}{% endfor %}{% if m.role == 'user' %}[/INST]"
        "{% else %}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "mllama": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{% for c in m.content %}"
        "{% if c.type == 'text' %}{{ c.text | trim }}{% else %}<|image|>{% endif %}{% endfor %}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
}
"""Chat templates that write what those of the released checkpoints write."""


def byte_level(*special: str, bos: str | None = None, adds_bos: bool = False, **named: str) -> PreTrainedTokenizerFast:
    """Bytes, and special tokens; "<pad>" and "</s>" are among them, `named` are attributes of the tokenizer."""
    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return _finished(inner, special, bos, adds_bos, named)


def sentence_piece(scheme: str, *special: str, bos: str | None = None, **named: str) -> PreTrainedTokenizerFast:
    """Characters as SentencePiece writes them: a text has a space before it, by `scheme`."""
    letters = [chr(i) for i in range(33, 127)]
    words = ["<unk>", "▁", "\n", *letters]
    vocabulary = {word: i for i, word in enumerate([*words, *(f"▁{letter}" for letter in letters)])}
    merges = [("▁", letter) for letter in letters]
    inner = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    inner.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return _finished(inner, special, bos, bos is not None, named)


def _finished(
    inner: Tokenizer, special: tuple[str, ...], bos: str | None, adds_bos: bool, named: dict[str, str]
) -> PreTrainedTokenizerFast:
    marks = ["<pad>", "</s>", *([bos] if bos else []), *special]
    inner.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in dict.fromkeys(marks)])
    if adds_bos and bos:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, inner.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", bos_token=bos, extra_special_tokens=named
    )


def _llava(**options: Any) -> Any:
    words = sentence_piece("first", "<image>", bos="<s>", image_token="<image>")
    told = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return LlavaProcessor(CLIPImageProcessor(**CLIP, **options), words, chat_template=TEMPLATES["llava"], **told)


def _paligemma() -> Any:
    images = SiglipImageProcessor(**SQUARE)
    images.image_seq_length = 4
    return PaliGemmaProcessor(images, sentence_piece("never", "<image>", bos="<bos>", image_token="<image>"))


def _qwen(kind: Any) -> Any:
    marks = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    marks |= {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"}
    words = byte_level("<|im_start|>", "<|im_end|>", *marks.values(), **marks)
    images = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=28 * 28 * 60)
    return kind(images, words, Qwen2VLVideoProcessor(), chat_template=TEMPLATES["qwen"])


def _smolvlm() -> Any:
    rows = [f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5)]
    marks = {"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"}
    marks |= {"image_token": "<image>", "end_of_utterance_token": "<end_of_utterance>"}
    words = byte_level("<|im_start|>", *marks.values(), *rows, **marks)
    images = SmolVLMImageProcessor(size={"longest_edge": 224}, max_image_size={"longest_edge": 56})
    return SmolVLMProcessor(images, words, SmolVLMVideoProcessor(), 4, chat_template=TEMPLATES["smolvlm"])


def _internvl() -> Any:
    marks = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    marks |= {"video_token": "<video>"}
    words = byte_level("<|im_start|>", "<|im_end|>", *marks.values(), **marks)
    images = GotOcr2ImageProcessor(**SQUARE, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    return InternVLProcessor(images, words, InternVLVideoProcessor(), 4, chat_template=TEMPLATES["internvl"])


def _pixtral() -> Any:
    words = byte_level("[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]", bos="<s>", adds_bos=True)
    images = PixtralImageProcessor(size={"longest_edge": 112}, patch_size={"height": 14, "width": 14})
    return PixtralProcessor(images, words, patch_size=14, chat_template=TEMPLATES["pixtral"])


def _mllama() -> Any:
    marks = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>", "<|end_of_text|>")
    words = byte_level(*marks, bos="<|begin_of_text|>", adds_bos=True)
    # As in the released checkpoint the image's row is the first that the head lacks.
    fillers = [f"<|reserved_{i}|>" for i in range(ROWS - len(words))]
    words.add_special_tokens({"additional_special_tokens": [*fillers, "<|image|>"]})
    return MllamaProcessor(MllamaImageProcessor(**SQUARE), words, chat_template=TEMPLATES["mllama"])


def _blip2() -> Any:
    words = byte_level("<image>", bos="</s>", adds_bos=True)
    return Blip2Processor(BlipImageProcessor(**SQUARE), words, num_query_tokens=4)


def _idefics() -> Any:
    words = sentence_piece("first", "<fake_token_around_image>", "<image>", bos="<s>")
    return IdeficsProcessor(IdeficsImageProcessor(image_size=28), words, image_size=28)


PROCESSORS: dict[str, Callable[[], Any]] = {
    "llava-1.5": _llava,
    "paligemma": _paligemma,
    "paligemma-2": _paligemma,
    "qwen2-vl": lambda: _qwen(Qwen2VLProcessor),
    "qwen2.5-vl": lambda: _qwen(Qwen2_5_VLProcessor),
    "smolvlm2": _smolvlm,
    "internvl-3": _internvl,
    "pixtral": _pixtral,
    "llama-3.2-vision": _mllama,
    "blip-2": _blip2,
    "idefics": _idefics,
}
"""How each family's processor is made."""
IMAGES = {"internvl-3": "<IMG_CONTEXT>", "pixtral": "[IMG]", "blip-2": "<image>"}
"""Tokens of images that a tokenizer does not name."""
OURS = {"smolvlm2": "smolvlm", "llama-3.2-vision": "mllama"}
"""Families that `tiny_families` has under the name of their class."""


def save_random_model(config: dict[str, Any], folder: Path) -> Any:
    """Saves a model of transformers with weights that matter: some of those it starts with are zeros."""
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**config)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return model


def save_released(name: str, folder: Path) -> tuple[Any, Any]:
    """Saves a random checkpoint of the family; gives transformers' model and processor of it."""
    torch.manual_seed(0)
    processor = PROCESSORS[name]()
    words = processor.tokenizer
    values = dict(MODELS[OURS.get(name, name)])
    rows = {"vocab_size": max(ROWS, len(words))} if name != "llama-3.2-vision" else {"vocab_size": ROWS}
    if name == "idefics":
        values |= {"vocab_size": len(words) - 2, "additional_vocab_size": 2, "bos_token_id": words.bos_token_id}
    else:
        values["text_config"] = {**values["text_config"], "max_position_embeddings": 2048, **rows}
        image = getattr(words, "image_token", None) or IMAGES.get(name)
        number = words.convert_tokens_to_ids(image or "<|image|>")
        values |= {key: number for key in ("image_token_id", "image_token_index") if key in values}
    if name == "pixtral":
        values["vision_config"] = {**values["vision_config"], "image_size": 112}
    if name.startswith("qwen"):
        tokens = {"video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
        values |= {f"{key}_token_id": words.convert_tokens_to_ids(f"<|{token}|>") for key, token in tokens.items()}
    processor.save_pretrained(folder)
    return save_random_model(values, folder), processor

"""A format of conversations from a chat template: rendered around words that are then looked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers.utils import cached_file

from vla.errors import InputError
from vla.models.chat import ChatFormat, bos_of
from vla.models.preprocessing.markup import Markup
from vla.models.preprocessing.released import file_of

FIRST, SECOND, SAID = "firstquestion", "secondquestion", "someanswer"


def template_of(name: str | Path, tokenizer: Any) -> str | None:
    """The chat template of a checkpoint, a hub's id or a folder: its processor's, or its tokenizer's; of several
    files the one that transformers takes."""
    files = (file_of(name, file) or {} for file in ("processor_config.json", "chat_template.json"))
    own = (found["chat_template"] for found in files if found.get("chat_template"))
    template: Any = next(own, None) or _plain_template(name) or tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def _plain_template(name: str | Path) -> str | None:
    path = cached_file(
        name,
        "chat_template.jinja",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path).read_text()


def chat_of(
    tokenizer: Any, template: str, markup: Markup, image: str, system: str | None, known: ChatFormat
) -> ChatFormat:
    """What a chat template writes around images, prompts and answers, with a `system` message first, if there is one.

    `image` is its token of an image. What the template leaves open (the end of an answer) is as in `known`. Raises
    InputError where a template does not write a question and its image as they are.
    """

    def rendered(*turns: Sequence[Any]) -> str:
        messages = [] if system is None else [_message("system", [system])]
        roles = ("user", "assistant")
        messages += [_message(roles[i % 2], turn) for i, turn in enumerate(turns)]
        told = {"chat_template": template, "tokenize": False, "add_generation_prompt": True}
        return str(tokenizer.apply_chat_template(messages, **told))

    try:
        one, two, none = rendered([None, FIRST]), rendered([None, None, FIRST]), rendered([FIRST])
        before, _, behind = one.partition(image)
        question, _, answer = behind.partition(FIRST)
        bare, found, _ = none.partition(FIRST)
        parts = two.split(image)
        if not answer or not found or len(parts) != 3:
            raise InputError("it does not write a question as it is, and a token for each image")
    except (TemplateError, TypeError, ValueError, InputError) as error:
        raise InputError(f"the chat template of the checkpoint cannot be read: {error}") from error
    own_bos = bool(tokenizer.bos_token) and one.startswith(tokenizer.bos_token)
    chat = ChatFormat(
        begin=before.removesuffix(markup.begin),
        question=question.removeprefix(markup.end),
        answer=answer,
        end=known.end,
        again=known.again,
        reply=known.reply,
        between=parts[1].removeprefix(markup.end).removesuffix(markup.begin),
        bare=bare,
        bos=not own_bos and bool(bos_of(tokenizer.backend_tokenizer)),
    )
    try:
        later = rendered([None, FIRST], [SAID], [SECOND])
    except (TemplateError, TypeError, ValueError):
        return chat
    reply, said, rest = later.removeprefix(one).partition(SAID)
    if not later.startswith(one) or not said or not rest.startswith(known.end):
        return chat
    return replace(chat, reply=reply, again=rest.removeprefix(known.end).partition(SECOND)[0])


def _message(role: str, parts: Sequence[Any]) -> dict[str, Any]:
    """A message; None stands for an image."""
    content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
    return {"role": role, "content": content}

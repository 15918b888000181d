"""Derives a chat format from a chat template, by rendering marker words and locating them in the result."""

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

FIRST, SECOND, ANSWER = "firstquestion", "secondquestion", "someanswer"


def template_of(name: str | Path, tokenizer: Any) -> str | None:
    """The chat template of a checkpoint (an id on the hub or a folder), with the same precedence as in transformers.

    It is the processor's, or else the tokenizer's.
    """
    files = (file_of(name, file) or {} for file in ("processor_config.json", "chat_template.json"))
    in_json = (found["chat_template"] for found in files if found.get("chat_template"))
    template: Any = next(in_json, None) or _plain_template(name) or tokenizer.chat_template
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
    """The chat format of a chat template.

    Args:
        image: the template's image token.
        system: system message at the start, if any.
        known: the family's format, for what the template does not define (the end of an answer).

    Raises:
        InputError: where the template does not write questions and images verbatim.
    """

    def rendered(*turns: Sequence[Any]) -> str:
        messages = [] if system is None else [_message("system", [system])]
        roles = ("user", "assistant")
        messages += [_message(roles[i % 2], turn) for i, turn in enumerate(turns)]
        options = {"chat_template": template, "tokenize": False, "add_generation_prompt": True}
        return str(tokenizer.apply_chat_template(messages, **options))

    try:
        one, two, none = rendered([None, FIRST]), rendered([None, None, FIRST]), rendered([FIRST])
        before, _, after = one.partition(image)
        question, _, answer = after.partition(FIRST)
        bare, found, _ = none.partition(FIRST)
        segments = two.split(image)
        if not answer or not found or len(segments) != 3:
            raise InputError("it does not write a question verbatim, and a token for each image")
    except (TemplateError, TypeError, ValueError, InputError) as error:
        raise InputError(f"the chat template of the checkpoint cannot be read: {error}") from error
    writes_bos = bool(tokenizer.bos_token) and one.startswith(tokenizer.bos_token)
    chat = ChatFormat(
        begin=before.removesuffix(markup.begin),
        question=question.removeprefix(markup.end),
        answer=answer,
        end=known.end,
        again=known.again,
        reply=known.reply,
        between=segments[1].removeprefix(markup.end).removesuffix(markup.begin),
        bare=bare,
        bos=not writes_bos and bool(bos_of(tokenizer.backend_tokenizer)),
    )
    try:
        later = rendered([None, FIRST], [ANSWER], [SECOND])
    except (TemplateError, TypeError, ValueError):
        return chat
    reply, marker, rest = later.removeprefix(one).partition(ANSWER)
    if not later.startswith(one) or not marker or not rest.startswith(known.end):
        return chat
    return replace(chat, reply=reply, again=rest.removeprefix(known.end).partition(SECOND)[0])


def _message(role: str, items: Sequence[Any]) -> dict[str, Any]:
    """A chat message of texts and images (None)."""
    content = [{"type": "image"} if item is None else {"type": "text", "text": item} for item in items]
    return {"role": role, "content": content}

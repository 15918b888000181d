"""The project's words: identifiers that the glossary replaces, and phrases that plain technical English avoids."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BANNED = {
    "told": "conditioning, metrics, logged, reported: what it holds",
    "tell": "report, log, condition_on",
    "tells": "conditions_on",
    "said": "logger, text, answer, message: what it holds",
    "say": "generate, write, print",
    "says": "states, declares",
    "sayable": "allowed_token_ids",
    "asked": "request, question, requested",
    "ask": "query, request, decode_tokens",
    "asks": "queries",
    "given": "prefix, committed, prefix_length, options, provided",
    "beyond": "leftover, excess, outside",
    "see": "encode_images, observe",
    "sees": "observes",
    "seen": "observation, observed, visited",
    "situation": "conditioning_mlp",
    "whole": "complete, full, entire",
    "speak": "make_processor",
    "spoken": "written",
    "insulate": "knowledge_insulation",
    "continuous_mask": "continuous_mask",
    "guessed": "draft_length",
    "vocabulary_rows": "vocab_size",
    "ledger": "result_store",
    "guard": "safety_filter",
    "retain": "regression_gates",
    "ttl": "max_observation_age_s",
    "heartbeat": "inference_timeout_s",
}
"""Words of a name, and what to write instead (docs/glossary.md)."""
ALLOWED: dict[str, set[str]] = {
    "vla/common/renamed_keys.py": {"*"},  # the earlier names
    "vla/models/preprocessing/tiles.py": {"Whole"},  # checkpoints name it
}


def names(file: Path) -> Iterator[tuple[str, int]]:
    """Every name that a file binds: of modules, classes, functions, arguments, attributes and variables."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, node.lineno


def words(name: str) -> list[str]:
    """The words of a snake_case, CamelCase or UPPER_CASE name."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def test_names_have_the_words_of_the_glossary() -> None:
    found = []
    for folder in ("vla", "datasets", "policies", "envs", "lerobot_policy_vla"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            relative = str(file.relative_to(ROOT))
            if any(part.is_symlink() for part in file.parents if part != ROOT and ROOT in part.parents):
                continue
            allowed = ALLOWED.get(relative, set())
            for name, line in names(file):
                wrong = [word for word in words(name) if word in BANNED]
                if wrong and name not in allowed and "*" not in allowed:
                    found.append(f"{relative}:{line}: {name}: {BANNED[wrong[0]]}")
    assert found == []


def test_words_of_a_name() -> None:
    assert words("_told_robots") == ["told", "robots"]
    assert words("SafetyFilter") == ["safety", "filter"] and words("MAX_STEPS") == ["max", "steps"]
    assert words("asHTTPError") == ["as", "http", "error"]

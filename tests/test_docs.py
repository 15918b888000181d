"""The documentation: navigation, links, anchors, commands, diagrams, and the words of the glossary."""

from __future__ import annotations

import importlib.util
import re
import shlex
import textwrap
import unicodedata
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import TOY

from vla.commands import cli
from vla.datasets.episodes import EpisodeStore
from vla.envs.make import make_env
from vla.errors import InputError
from vla.policies.policy import Policy
from vla.types import Episode, Observation, RTCPrefix

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
TEXTS = [*(DOCS / page for page in PAGES), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))]

# Phrase that the documents do not use: what to write instead.
BANNED = {
    r"\b(is|are|was|were|be|been) (not )?told\b|\btold (apart|by|from)\b": "gets, is configured with; distinguishable",
    r"\bsaid\b|\bsayable\b": "predicted, generated; allowed tokens",
    r"\basked\b": "called, requested; at inference",
    r"\bunder way\b": "committed (actions); in progress",
    r"\b(speaks?|spoken)\b": "implements (a protocol), uses (a chat template)",
    r"\bthinks?\b|\bthinking\b": "inference",
    r"\bgo(es)? on\b|\bwent on\b|\bgone on\b": "continues, resumes",
    r"\bcarr(y|ies|ied) out\b": "executes",
    r"\bto the bit\b": "bit for bit, bit-identical",
    r"\bwhole or not at all\b": "atomic",
    r"\bmakes? up\b|\bmade up\b": "hallucinates",
    r"\bfor want of\b": "without, because of a missing",
    r"\bof before\b|\bfrom before\b": "older",
    r"\bin words of its own\b|\bon its own terms\b": "the plain statement",
    r"\bthe guard\b|\ba guard\b": "safety filter",
    r"\bheartbeat\b": "inference timeout",
    r"\bone's? own\b": "separate",
    r"\bwhat is what\b": "the plain statement",
    r"\blearned? by heart\b": "reproduces",
    r"\bso to say\b|\bas it were\b": "the plain statement",
}
# Older names of options, which only the glossary lists.
RENAMED = {
    r"\bexecute=": "n_action_steps",
    r"\bloop\.ttl\b": "loop.max_observation_age_s",
    r"\bloop\.heartbeat\b": "loop.inference_timeout_s",
    r"\bloop\.first\b": "loop.first_inference_timeout_s",
    r"\blr_scales\b": "lr_multipliers",
    r"\bstate_as\b": "state_encoding",
    r"\bhead\.insulate\b": "head.knowledge_insulation",
    r"\bhead\.continues\b": "head.rtc_training",
    r"\bretain=": "regression_gates",
    r"\bguard=": "safety_filter",
    r"(?<!uv )\bpip install\b": "uv pip install: the environment has no pip",
}


def load(name: str) -> ModuleType:
    """A script of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose(text: str) -> str:
    """A page without code and link targets; lines keep their numbers."""
    text = re.sub(r"```.*?```", lambda match: "\n" * match[0].count("\n"), text, flags=re.DOTALL)
    return re.sub(r"`[^`]*`", lambda match: "\n" * match[0].count("\n"), text)


def found(patterns: dict[str, str], text: str) -> list[str]:
    """Each match, with its line and what to write instead."""
    matches = ((m, better) for pattern, better in patterns.items() for m in re.finditer(pattern, text, re.IGNORECASE))
    return [f"line {text[: m.start()].count('\n') + 1}: {m[0]!r}: {better}" for m, better in matches]


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of a page's headings, as Python-Markdown makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    if page == DOCS / "reference" / "cli.md":
        titles += cli.COMMANDS
    plain = (unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode() for title in titles)
    return frozenset(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in plain)


def leaves(node: Any) -> list[str]:
    if isinstance(node, str):
        return [node]
    return [leaf for item in (node.values() if isinstance(node, dict) else node) for leaf in leaves(item)]


def test_every_page_is_in_the_navigation_once() -> None:
    nav = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(nav) == PAGES


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_resolve(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_wording(page: Path) -> None:
    text = page.read_text()
    glossary = page.name == "glossary.md"
    # The glossary lists older names in its last column.
    words = re.sub(r"\|[^|\n]*\|$", "|", prose(text), flags=re.MULTILINE) if glossary else prose(text)
    assert found(BANNED, words) + ([] if glossary else found(RENAMED, text)) == []


def test_the_wording_test_finds_phrases() -> None:
    assert found(BANNED, "one\nThe policy is asked, and the robot goes on.") == [
        "line 2: 'asked': called, requested; at inference",
        "line 2: 'goes on': continues, resumes",
    ]
    assert found(BANNED, prose("with `frames=asked`\n```\nasked\n```")) == []
    assert len(found(RENAMED, "`pip install x`, `uv pip install y`, `guard=false`")) == 2


def commands(page: Path) -> list[str]:
    """The `vla` lines of a page's code blocks, with continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = (line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines())
    return [line for line in lines if line.startswith("vla ")]


def check_key(command: str, key: str) -> None:
    """Raises KeyError where the command's file has no such option; groups and open mappings take any key."""
    node: Any = yaml.safe_load((ROOT / "configs" / f"{command}.yaml").read_text()) or {}
    groups = {name for item in node.pop("defaults", []) if isinstance(item, dict) for name in item}
    first = key.lstrip("+~").split(".")[0]
    if first in groups or first == "hydra" or first.startswith("hydra/"):
        return
    for part in key.lstrip("+~").split("."):
        if node is None or node == {} or (isinstance(node, dict) and part not in node and key.startswith("+")):
            return
        node = node[part]


@pytest.mark.parametrize("page", [page for page in TEXTS if commands(page)], ids=lambda page: page.stem)
def test_commands_have_known_options(page: Path) -> None:
    wrong = []
    for line in commands(page):
        _, name, *arguments = shlex.split(line, comments=True)
        if arguments == ["--help"]:
            continue
        try:
            overrides, _ = cli.parse(name, arguments)
            for override in overrides:
                check_key(name, override.partition("=")[0])
        except (InputError, KeyError, TypeError) as error:
            wrong.append(f"{line}: {error!r}")
    assert wrong == []


def test_an_unknown_option_is_found() -> None:
    check_key("eval", "n_action_steps")
    check_key("deploy", "robot.port")
    with pytest.raises(KeyError):
        check_key("deploy", "loop.ttl")


def missing_references(text: str) -> list[str]:
    """Files and modules of the project that inline code names and that do not exist."""
    files = re.findall(r"`((?:vla|envs|policies|datasets|configs|tests|docs)/[\w./*-]*(?:/|\.\w+))`", text)
    made = ("docs/results/gpu.json",)  # by `make gpu`
    missing = [f for f in files if "NAME" not in f and f not in made and not list(ROOT.glob(f.rstrip("/")))]
    for name in re.findall(r"`(vla(?:\.\w+)+)[`(]", text):
        parts = name.split(".")
        path = ROOT / "/".join(parts)
        inside = path.parent.with_suffix(".py"), path.parent / "__init__.py"
        defined = any(f.exists() and re.search(rf"\b{parts[-1]}\b", f.read_text()) for f in inside)
        if not (path.is_dir() or path.with_suffix(".py").exists() or defined):
            missing.append(name)
    return missing


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_and_modules_exist(page: Path) -> None:
    assert missing_references(page.read_text()) == []


def test_a_missing_reference_is_found() -> None:
    text = "`vla/types.py` `vla/vlm/backbone.py` `vla.types.Observation` `vla.types.Nothing` `vla.models.vla.VLA(`"
    assert missing_references(text) == ["vla/vlm/backbone.py", "vla.types.Nothing"]


def test_the_example_of_a_policy_works() -> None:
    code = re.search(r" {4}```python\n(.*?) {4}```", (DOCS / "extending.md").read_text(), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(textwrap.dedent(code[1]), names)
    policy = names["WavePolicy"](TOY)
    seen = Observation({}, np.zeros(2), "lift it", 1.0)
    chunk, continued = policy.predict(seen), policy.predict(seen, prefix=RTCPrefix(np.ones((2, 3))))
    assert isinstance(policy, Policy) and chunk.actions.shape == (10, 3) and chunk.start == 1.0
    assert (continued.actions[:2] == 1).all() and (continued.actions[2:] == chunk.actions[2:]).all()


def test_diagrams_are_those_of_the_script() -> None:
    script = load("diagrams")
    for name, drawn in (("data-flow", script.data_flow()), ("control-loop", script.control_loop())):
        assert (DOCS / "diagrams" / f"{name}.svg").read_text() == drawn


def test_the_picture_of_the_demo_has_a_row_of_images_for_each_instruction(tmp_path: Path) -> None:
    script, env = load("demo_picture"), make_env("pick", phrasing="heldout")
    with EpisodeStore.create(tmp_path / "rollouts.zarr", env.unwrapped.embodiment) as store:  # type: ignore[attr-defined]
        for seed, group, success in ((3, "named", True), (4, "named", True), (4, "swap", True), (5, "named", False)):
            values, info = env.reset(seed=seed, options={"swap": group == "swap"})
            store.append(
                Episode(
                    {camera: np.stack([image] * 5) for camera, image in values["images"].items()},
                    *(np.stack([values["state"].astype(np.float64)] * 5) for _ in ("state", "action")),
                    np.arange(5) / 10,
                    info["instruction"],
                    store.embodiment,
                    success,
                    {"seed": seed, "group": group},
                )
            )
            if seed == 3:
                with pytest.raises(InputError, match="with both instructions"):
                    script.picture(tmp_path)
    env.close()
    picture = script.picture(tmp_path)
    size = script.HEIGHT
    assert picture.size == (4 * size, 2 * (size + script.BAR))
    rows = [np.asarray(picture)[top + script.BAR : top + script.BAR + size] for top in (0, size + script.BAR)]
    np.testing.assert_array_equal(*rows)  # an arm that stands still, in the same scene


def test_the_command_reference_has_every_command() -> None:
    text = load("hooks").command_reference()
    assert re.findall(r"^## (\S+)$", text, re.MULTILINE) == ["Overview", *cli.COMMANDS]


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("reference/")])
def test_modules_of_the_reference_exist(page: str) -> None:
    modules = re.findall(r"^::: (\S+)$", (DOCS / page).read_text(), re.MULTILINE)
    assert modules or page in ("reference/index.md", "reference/cli.md")
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").exists()


def test_workflows_and_hooks_call_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    files = (".github/workflows/ci.yml", ".pre-commit-config.yaml")
    lines = [line for file in files for line in re.findall(r"\bmake (.+)", (ROOT / file).read_text())]
    called = {word for line in lines for word in re.findall(r"(?<!\S)[a-z][a-z-]*(?!\S)", line)}
    assert {"lint", "type", "test", "docs", "wheel"} <= called <= targets


def test_forms_and_metadata_are_readable() -> None:
    files = [*(ROOT / ".github").rglob("*.yml"), ROOT / "CITATION.cff", ROOT / ".pre-commit-config.yaml"]
    assert len(files) >= 6 and all(yaml.safe_load(file.read_text()) for file in files)
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert project and yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == project[1]


def test_the_glossary_has_each_term_once() -> None:
    sections = re.split(r"^## ", (DOCS / "glossary.md").read_text(), flags=re.MULTILINE)[1:]
    tables = [re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)[1:] for section in sections]
    terms = [term for table in tables for term in table]
    assert len(terms) > 50 and len(set(terms)) == len(terms)
    for table in tables:
        assert table == sorted(table, key=lambda term: term.strip("`").lower())

"""Tasks, heads and robots of other packages are found by their entry points, or registered by a script."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import vla
from vla.commands import cli
from vla.commands.options import bind, compose
from vla.common import plugins
from vla.common.plugins import TASKS, installed, load_plugin
from vla.envs import env_id, register_envs
from vla.envs.instructions import instruction
from vla.envs.tasks import TASKS as TABLE
from vla.envs.tasks.pick import Pick
from vla.envs.tasks.plugin_task import make_plugin_task
from vla.envs.tasks.task import Task
from vla.errors import InputError
from vla.models.action_heads.action_head import Vocabulary
from vla.models.action_heads.parallel import ParallelHead
from vla.models.vla import VLA

MODULE = """
from vla.envs.tasks.pick import Pick
from vla.models.action_heads.parallel import ParallelHead
from vla.robots.sim import SimRobot

class Fetch(Pick):
    name = "fetch-it"

class OwnHead(ParallelHead):
    def __init__(self, vocabulary, bidirectional=True):
        super().__init__(vocabulary, bidirectional)
        self.settings = {"kind": "own", "bidirectional": bidirectional}

def robot(task="pick", seed=3, velocity="4.7"):
    return SimRobot(task=task, seed=seed, velocity=4.7, acceleration=60.0)
"""
ENTRY_POINTS = """
[vla.tasks]
fetch-it = own_plugin:Fetch
broken = own_plugin:Missing
[vla.action_heads]
own = own_plugin:OwnHead
[vla.robots]
own_arm = own_plugin:robot
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution with three plug-ins and one that cannot be imported."""
    (tmp_path / "own_plugin.py").write_text(MODULE)
    folder = tmp_path / "own_plugin-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: own-plugin\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    installed.cache_clear()
    register_envs()
    yield
    for task in ("fetch-it", "broken"):
        gymnasium.registry.pop(env_id(task), None)
    sys.modules.pop("own_plugin", None)
    installed.cache_clear()


@pytest.mark.usefixtures("plugin")
def test_a_task_of_another_package() -> None:
    env = vla.make_env("fetch-it")
    observation, info = env.reset(seed=0)
    assert info["target"] in observation["instruction"]
    assert vla.load_policy("expert", env).predict(observation) is not None
    env.close()
    assert gymnasium.make("vla/SO101-FetchIt-v1").spec is not None


@pytest.mark.usefixtures("plugin")
def test_one_that_cannot_be_imported_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"broken of the package own-plugin cannot be imported \(own_plugin:Missing\)"):
        load_plugin(TASKS, "broken")
    assert cli.main(["eval", "task=fetch-i", "policy=expert"]) == 2
    assert "did you mean 'fetch-it'?" in capsys.readouterr().err


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("command", "lines"),
    [
        ("train", {"task=fetch-it, broken", "head=own"}),
        ("deploy", {"robot=own_arm", "robot.task=fetch-it, broken"}),
        ("eval", {"task=fetch-it, broken"}),
        ("data", set()),
    ],
)
def test_the_help_of_a_command_lists_plug_ins_without_importing_them(
    command: str, lines: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, "--help"]) == 0
    _, _, listed = capsys.readouterr().out.partition("Plug-ins of installed packages:")
    assert {line.strip() for line in listed.partition("\n\n")[0].splitlines() if line} == lines
    assert "own_plugin" not in sys.modules


@pytest.mark.usefixtures("plugin")
def test_a_head_of_another_package(make_model: Callable[..., VLA], tmp_path: Path) -> None:
    assert compose("train", ["head=own"]).head == {"kind": "own", "bidirectional": True}
    assert compose("train", ["head=own", "head.bidirectional=false"]).head.bidirectional is False
    model = make_model(head="own", bidirectional=False)
    model.save(tmp_path)
    head = VLA.load(tmp_path).processor.head
    assert type(head).__name__ == "OwnHead" and head.settings == {"kind": "own", "bidirectional": False}


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train head=onw", "unknown head 'onw' (did you mean 'own'?)"),
        ("train head=own head.bidirectionl=true", "no option 'head.bidirectionl' (did you mean 'head.bidirectional'?)"),
        ("train head=own head.bidirectional=wide", "head.bidirectional=wide: takes true or false"),
        ("deploy policy=hold robot=own_amr", "unknown robot 'own_amr' (did you mean 'own_arm'?)"),
        ("deploy policy=hold robot=own_arm robot.sed=1", "no option 'robot.sed' (did you mean 'robot.seed'?)"),
        ("deploy policy=hold robot=own_arm robot.seed=x", "robot.seed=x: takes a number"),
        (
            "deploy policy=hold 'robot={_target_: own_plugin.Gone}'",
            "cannot import own_plugin.Gone: ModuleNotFoundError:",
        ),
        ("train head=flow head.widht=64", "no option 'head.widht' (did you mean 'head.width'?)"),
    ],
)
def test_a_mistake_in_the_options_of_a_plug_in_is_named(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(shlex.split(arguments)) == 2
    assert message in capsys.readouterr().err
    # The import may take seconds; only _target_ names a class without checking its options first.
    assert "own_plugin" not in sys.modules or "_target_" in arguments


@pytest.mark.usefixtures("plugin")
def test_a_robot_of_another_package() -> None:
    config = compose("deploy", ["policy=hold", "robot=own_arm", "robot.seed=7", "robot.velocity=fast"])
    assert config.robot == {"_target_": "own_plugin.robot", "task": "pick", "seed": 7, "velocity": "fast"}
    robot = bind(lambda **values: values["robot"], config)()
    assert type(robot).__name__ == "SimRobot"


class Nameless(Pick):
    name = "other"


class Unfilled(Pick):
    name = "t"
    templates = {"train": ("lift the {objekt}",), "heldout": ("the {object}",)}


class Unheld(Pick):
    name = "t"
    templates = {"train": ("lift the {object}",)}


class Loud(Pick):
    name = "t"
    templates = {"train": ("Lift the {object}!",), "heldout": ("the {object}",)}


class OneWord(Pick):
    name = "t"
    vocabulary = {"object": "red cube"}  # type: ignore[dict-item]


class Partial(Task):
    name = "t"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (dict, "no subclass of vla.envs.tasks.task.Task"),
        (Partial, "Partial lacks templates, vocabulary, done, layout, plan, words"),
        (Nameless, "its class has name = 'other'"),
        (Unfilled, "has the field 'objekt', which is not in vocabulary: object"),
        (Unheld, r"templates\['heldout'\] must be a tuple of at least one wording"),
        (Loud, "contains '!L'"),
        (OneWord, r"vocabulary\['object'\] must be a tuple of words"),
    ],
)
def test_a_mistake_in_a_task_is_named(kind: type, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_plugin_task("t", kind)


@pytest.mark.parametrize("task", TABLE.values(), ids=lambda task: task.name)
def test_every_task_on_the_table_passes_the_checks(task: Task) -> None:
    assert isinstance(make_plugin_task(task.name, type(task)), type(task))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"object": "red cube"}, "words.. has object='red cube': give a tuple"),
        ({"thing": ("cube",)}, "has no 'object'"),
    ],
)
def test_words_are_tuples_of_the_fields(words: dict[str, tuple[str, ...]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        instruction(["lift the {object}"], words, np.random.default_rng(0))


class Arm:
    """A robot of two options, made by nothing here."""

    def __init__(self, speed: float, port: str = "") -> None:
        self.speed, self.port = speed, port


@pytest.mark.parametrize("command", ["deploy policy=hold", "record", "robot status"])
def test_a_robot_named_by_its_class_has_no_option_of_the_default_one(command: str) -> None:
    name, *rest = command.split()
    overrides, _ = cli.parse(name, [*rest, "robot={_target_: test_plugins.Arm, speed: 3}", "robot.speed=4"])
    assert compose(name, overrides).robot == {"_target_": "test_plugins.Arm", "speed": 4}


@pytest.fixture
def unregistered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it."""
    monkeypatch.setattr(plugins, "_REGISTERED", {})
    yield
    gymnasium.registry.pop(env_id("lift-it"), None)
    installed.cache_clear()


class LiftIt(Pick):
    name = "lift-it"


class Query(ParallelHead):
    def __init__(self, vocabulary: Vocabulary, bidirectional: bool = True) -> None:
        super().__init__(vocabulary, bidirectional)
        self.settings = {"kind": "query", "bidirectional": bidirectional}


@pytest.mark.usefixtures("unregistered")
def test_a_registered_task_is_made_and_recorded_by_its_name() -> None:
    with pytest.raises(InputError, match="unknown task 'lift-it'"):
        vla.make_env("lift-it")
    vla.register_task(LiftIt)
    env = vla.make_env("lift-it", images=False)
    assert isinstance(env.unwrapped.task, LiftIt)  # type: ignore[attr-defined]
    env.close()
    gymnasium.make("vla/SO101-LiftIt-v1", images=False).close()
    assert compose("record", ["task=lift-it"]).task == "lift-it"


@pytest.mark.usefixtures("unregistered")
def test_a_registered_head_is_selected_saved_and_loaded(make_model: Callable[..., VLA], tmp_path: Path) -> None:
    vla.register_action_head("query", Query)
    assert compose("train", ["head=query"]).head == {"kind": "query", "bidirectional": True}
    make_model(head="query").save(tmp_path)
    assert isinstance(VLA.load(tmp_path).processor.head, Query)


@pytest.mark.usefixtures("unregistered")
def test_a_registered_robot_is_made_with_its_options() -> None:
    vla.register_robot("two-option-arm", Arm)
    config = compose("deploy", ["policy=hold", "robot=two-option-arm", "robot.speed=2"])
    robot = bind(lambda **values: values["robot"], config)()
    assert isinstance(robot, Arm) and (robot.speed, robot.port) == (2, "")


@pytest.mark.usefixtures("unregistered")
def test_what_no_other_process_could_import_is_not_registered() -> None:
    with pytest.raises(InputError, match="top level of a module"):
        vla.register_robot("lambda", lambda: Arm(1.0))
    with pytest.raises(InputError, match="register a class or a function, not functools.partial"):
        vla.register_robot("partial", partial(Arm, 1.0))
    with pytest.raises(InputError, match="takes a class of vla.envs.tasks.task.Task with a name, not <class 'dict'>"):
        vla.register_task(dict)  # type: ignore[arg-type]


@pytest.mark.usefixtures("unregistered")
def test_a_checkpoint_names_the_head_whose_package_is_missing(make_model: Callable[..., VLA], tmp_path: Path) -> None:
    vla.register_action_head("query", Query)
    make_model(head="query").save(tmp_path)
    plugins._REGISTERED.clear()
    installed.cache_clear()
    with pytest.raises(InputError, match="cannot be loaded: there is no head query: .*install the package that has it"):
        VLA.load(tmp_path)

"""Tasks, heads and robots of other packages are found by their entry points, or registered by a script."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium
import pytest

import vla
from vla.commands import cli
from vla.commands.options import bind, compose
from vla.common import plugins
from vla.common.plugins import TASKS, installed, load_plugin
from vla.envs import env_id, register_envs
from vla.envs.tasks.pick import Pick
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

def robot(task="pick", seed=3):
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
def test_a_head_of_another_package(make_model: Callable[..., VLA], tmp_path: Path) -> None:
    assert compose("train", ["head=own"]).head == {"kind": "own", "bidirectional": True}
    assert compose("train", ["head=own", "head.bidirectional=false"]).head.bidirectional is False
    model = make_model(head="own", bidirectional=False)
    model.save(tmp_path)
    head = VLA.load(tmp_path).processor.head
    assert type(head).__name__ == "OwnHead" and head.settings == {"kind": "own", "bidirectional": False}


@pytest.mark.usefixtures("plugin")
def test_a_robot_of_another_package() -> None:
    config = compose("deploy", ["policy=hold", "robot=own_arm", "robot.seed=7"])
    assert config.robot == {"_target_": "own_plugin.robot", "task": "pick", "seed": 7}
    robot = bind(lambda **values: values["robot"], config)()
    assert type(robot).__name__ == "SimRobot"


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

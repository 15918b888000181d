"""A checkpoint knows the simulated tasks of its data, and is evaluated and deployed on these."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_store
from serving import Mark, served
from test_run import options

from vla.commands import checks, cli
from vla.commands.options import bind, compose, values_of
from vla.errors import InputError
from vla.evaluation import evaluate as evaluation
from vla.evaluation.evaluation_options import EvaluationOptions
from vla.models.vla import VLA
from vla.policies.load import tasks_of_policy, tasks_trained_on
from vla.training.run import train
from vla.training.run_options import RunOptions
from vla.types import Episode

Episodes = Callable[..., Episode]


def store(make_episode: Episodes, path: Path, *tasks: Any) -> str:
    episodes = [make_episode(i, steps=6, info={"seed": i, "task": task}) for i, task in enumerate(tasks)]
    write_store(path, episodes)
    return str(path)


@pytest.fixture
def policy(make_model: Callable[..., VLA], tmp_path: Path) -> Callable[..., str]:
    def make(*tasks: str) -> str:
        model, folder = make_model(), tmp_path / f"policy-{len(list(tmp_path.iterdir()))}"
        model.processor.tasks = tasks
        model.save_pretrained(folder)
        return str(folder)

    return make


def test_a_training_notes_the_tasks_of_its_data(make_episode: Episodes, tmp_path: Path) -> None:
    drawer = store(make_episode, tmp_path / "a.zarr", "drawer-open", "drawer-open", None)
    fields: dict[str, Any] = {"plan": {"steps": 1, "batch_size": 2, "precision": "fp32"}}
    train(RunOptions(**options(drawer, tmp_path / "one", **fields)))
    assert VLA.load(tmp_path / "one" / "best").processor.tasks == ("drawer-open",)
    # What no environment is called is no task; what it was trained on before still is one.
    mixed = store(make_episode, tmp_path / "b.zarr", "metaworld/reach-v3", "pour the tea", "own.yaml", 3)
    train(RunOptions(**options(mixed, tmp_path / "two", **fields)))
    assert tasks_of_policy(str(tmp_path / "two")) == ("metaworld/reach-v3",)
    again = store(make_episode, tmp_path / "c.zarr", "drawer-close", "drawer-open", None)
    train(RunOptions(**options(again, tmp_path / "three", backbone=str(tmp_path / "one"), **fields)))
    assert tasks_of_policy(str(tmp_path / "three")) == ("drawer-close", "drawer-open")


def test_what_a_policy_was_trained_on(policy: Callable[..., str]) -> None:
    assert tasks_trained_on("expert") == ("pick",)
    assert tasks_trained_on(policy("stack", "sort")) == ("stack", "sort")
    assert tasks_trained_on(f"hub:{policy('stack')}") == ("stack",)
    for unknown in (policy(), f"lerobot:{policy()}"):
        with pytest.raises(InputError, match="name one, such as task=pick"):
            tasks_trained_on(unknown)
    with served(Mark(), tasks=("stack",)) as url:
        assert tasks_trained_on(url) == ("stack",)
    with served(Mark()) as url, pytest.raises(InputError, match="name one"):
        tasks_trained_on(url)


def test_a_checkpoint_of_before_says_none(policy: Callable[..., str]) -> None:
    file = Path(policy("stack")) / "processor.json"
    values = json.loads(file.read_text())
    del values["tasks"]
    file.write_text(json.dumps(values))
    assert VLA.load(file.parent).processor.tasks == () == tasks_of_policy(str(file.parent))
    file.write_text("[")
    with pytest.raises(InputError, match=r"processor.json is damaged"):
        tasks_of_policy(str(file.parent))


def test_an_evaluation_is_of_the_policys_tasks(
    policy: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Reached(Exception):
        pass

    def stop(task: str, *_: Any, **__: Any) -> None:
        raise Reached(task)

    monkeypatch.setattr("vla.evaluation.evaluation_options.check_task", stop)
    monkeypatch.setattr(evaluation, "evaluate_tasks", lambda tasks, *_, **__: stop("+".join(tasks)))

    def evaluated(**given: Any) -> str:
        values = values_of(compose("eval", [f"out={tmp_path / 'out'}"])) | given
        with pytest.raises(Reached) as reached:
            evaluation.evaluate(EvaluationOptions(**values))
        return str(reached.value)

    assert evaluated(policy=policy("drawer-open")) == "drawer-open"
    assert "task=drawer-open" in capsys.readouterr().out
    assert evaluated(policy=policy("pick", "place")) == "pick+place"
    assert evaluated(policy=policy("drawer-open"), task="stack") == "stack"
    assert "was trained on drawer-open, and is evaluated on stack" in capsys.readouterr().out
    assert evaluated(policy="expert") == "pick"
    with pytest.raises(InputError, match="does not name the simulated task"):
        bind(evaluation.evaluate, compose("eval", [f"out={tmp_path / 'out'}", f"policy={policy()}"]))()


def test_a_simulated_robot_stands_in_the_scene_of_the_policys_task(
    policy: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    def following(command: str, *overrides: str) -> list[str]:
        found: list[str] = getattr(checks, command)(**values_of(compose(command, overrides)))
        return found

    assert following("deploy", f"policy={policy('stack')}") == ["robot.task='stack'"]
    assert following("deploy", f"policy={policy('stack')}", "robot.task=sort") == ["robot.task='sort'"]
    assert following(
        "record", "robot=sim", "task=press", "leader_port=/dev/null", "pause=1", "instruction=press it", "out=x.zarr"
    ) == ["robot.task='press'"]
    capsys.readouterr()
    assert following("deploy", f"policy={policy()}") == ["robot.task='pick'"]
    assert "robot.task=pick: " in capsys.readouterr().out
    with pytest.raises(InputError, match="choose one, such as robot.task=pick"):
        following("deploy", f"policy={policy('pick', 'place')}")
    real = ["robot=so101", "robot.port=/dev/null", "instruction=stack them"]
    assert following("deploy", f"policy={policy('stack')}", *real) == []


def test_the_command_line_says_so(policy: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", f"policy={policy()}", "seeds=0:1"]) == 2
    assert "name one, such as task=pick" in capsys.readouterr().err

"""The tasks by name: a new one is a class like these and a line here and in `vla.envs.MAX_STEPS`, or a plug-in."""

from __future__ import annotations

from collections.abc import Iterator

from vla.common.plugins import TASKS as PLUGINS
from vla.common.plugins import installed, load_plugin
from vla.envs.tasks.bimanual_lift import BimanualLift
from vla.envs.tasks.drawer import DrawerClose, DrawerOpen
from vla.envs.tasks.pick import Pick
from vla.envs.tasks.place import Place
from vla.envs.tasks.plugin_task import make_plugin_task
from vla.envs.tasks.press import Press
from vla.envs.tasks.push import Push
from vla.envs.tasks.rearrange import Count, Order, Sort, Stack
from vla.envs.tasks.relation import Relation
from vla.envs.tasks.task import Task
from vla.errors import unknown

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Pick(), Place(), Push(), Stack(), Sort(), Press(), DrawerOpen(), DrawerClose(), Order(), Count(), Relation(),
        BimanualLift(),
    )
}  # fmt: skip


def get_task(name: str) -> Task:
    """The task of that name, ours or of a plug-in. Raises InputError for an unknown one, and as `make_plugin_task`."""
    if name in TASKS:
        return TASKS[name]
    if name not in installed(PLUGINS):
        raise unknown("task", name, [*TASKS, *installed(PLUGINS)])
    return make_plugin_task(name, load_plugin(PLUGINS, name))


def every_instruction() -> Iterator[str]:
    """All phrasings of all tasks with all words, not in all combinations; training text for a tokenizer."""
    for task in TASKS.values():
        for template in (t for templates in task.templates.values() for t in templates):
            for i in range(max(len(variants) for variants in task.vocabulary.values())):
                yield template.format(
                    **{field: variants[i % len(variants)] for field, variants in task.vocabulary.items()}
                )

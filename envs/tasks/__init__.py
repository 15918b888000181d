"""The tasks by name: a new one is a class like these and a line here and in `vla.envs.MAX_STEPS`, or a plug-in."""

from __future__ import annotations

from vla.common.plugins import TASKS as PLUGINS
from vla.common.plugins import installed, load_plugin
from vla.envs.tasks.bimanual_lift import BimanualLift
from vla.envs.tasks.drawer import DrawerClose, DrawerOpen
from vla.envs.tasks.pick import Pick
from vla.envs.tasks.place import Place
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
    """The task of that name, ours or of a plug-in. Raises InputError for an unknown one."""
    if name in TASKS:
        return TASKS[name]
    if name not in installed(PLUGINS):
        raise unknown("task", name, [*TASKS, *installed(PLUGINS)])
    task: Task = load_plugin(PLUGINS, name)()
    return task

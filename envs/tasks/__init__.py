"""The tasks by name. A new task needs a class, a line here, and one in `vla.envs.MAX_STEPS`."""

from __future__ import annotations

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
    """The task of that name. Raises InputError for an unknown one."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]

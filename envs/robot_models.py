"""Models of arms by name or file: the simulated SO-101, MJCF and URDF."""

from __future__ import annotations

from pathlib import Path

from vla.common.mujoco_gl import mujoco
from vla.errors import InputError

SIMULATED = {"so101": 1, "so101_pair": 2}
"""Models by the names of their embodiments, and how many arms those have."""
FILES = (".xml", ".urdf")


def load_robot_model(name: str) -> mujoco.MjModel:
    """The compiled model of `name`: so101, so101_pair, or a file of MJCF or URDF.

    Of a URDF links and joints are kept, its meshes are not needed. Raises InputError when there is no such file, and
    for one that MuJoCo cannot read, with its message.
    """
    if name in SIMULATED:
        from vla.envs.objects import Furniture
        from vla.envs.table import build_spec

        return build_spec(8, "light", Furniture(arms=SIMULATED[name])).compile()
    path = Path(name).expanduser()
    if not path.is_file() or path.suffix.lower() not in FILES:
        found, known = "that is no model" if path.is_file() else "there is no such file", ", ".join(SIMULATED)
        raise InputError(f"model={name}: {found}; name an MJCF (.xml) or URDF (.urdf) file, or one of {known}")
    try:
        spec = mujoco.MjSpec.from_file(str(path))
        if path.suffix.lower() == FILES[1]:
            _only_links(spec)
        return spec.compile()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"model={name}: MuJoCo cannot read it: {' '.join(str(error).split())}") from error


def _only_links(spec: mujoco.MjSpec) -> None:
    """What kinematics needs of a URDF: every link, also one that is fixed to another, which MuJoCo would leave out."""
    spec.compiler.fusestatic = False
    for part in (*spec.geoms, *spec.meshes):
        spec.delete(part)
    # Links of a URDF may have no mass.
    spec.compiler.boundmass = spec.compiler.boundinertia = 1e-6

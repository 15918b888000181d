"""Robot models by name or file: the simulated SO-101, MJCF and URDF."""

from __future__ import annotations

from pathlib import Path

from vla.common.mujoco_gl import mujoco
from vla.errors import InputError

SIMULATED = {"so101": 1, "so101_pair": 2}
"""The number of arms of each built-in model."""
FILES = (".xml", ".urdf")


def load_robot_model(name: str) -> mujoco.MjModel:
    """Compiles a robot model: so101, so101_pair, or an MJCF or URDF file.

    Only links and joints of a URDF are used; its meshes are not needed.

    Raises:
        InputError: the file does not exist, or MuJoCo cannot read it.
    """
    if name in SIMULATED:
        from vla.envs.objects import Furniture
        from vla.envs.table import build_spec

        return build_spec(8, "light", Furniture(arms=SIMULATED[name])).compile()
    path = Path(name).expanduser()
    if not path.is_file() or path.suffix.lower() not in FILES:
        reason, known = "that is no model" if path.is_file() else "there is no such file", ", ".join(SIMULATED)
        raise InputError(f"model={name}: {reason}; set an MJCF (.xml) or URDF (.urdf) file, or one of {known}")
    try:
        spec = mujoco.MjSpec.from_file(str(path))
        if path.suffix.lower() == FILES[1]:
            _only_links(spec)
        return spec.compile()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"model={name}: MuJoCo cannot read it: {' '.join(str(error).split())}") from error


def _only_links(spec: mujoco.MjSpec) -> None:
    """Removes geometry; keeps all links, including fixed ones, which MuJoCo would merge."""
    spec.compiler.fusestatic = False
    for part in (*spec.geoms, *spec.meshes):
        spec.delete(part)
    # Links of a URDF may have no mass.
    spec.compiler.boundmass = spec.compiler.boundinertia = 1e-6

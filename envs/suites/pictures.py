"""Fast rendering of any MuJoCo model, without shadows, reflections or multisampling."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, UInt8

from vla.common.mujoco_gl import mujoco
from vla.common.rendering import make_renderer
from vla.envs.suites.config import Camera
from vla.errors import InputError


class ModelRenderer:
    """Renders the cameras of a model, on a copy of its data. `close()` frees the renderers."""

    def __init__(self, model: mujoco.MjModel, cameras: Mapping[str, Camera]) -> None:
        self.model = model
        quality, size = model.vis.quality, model.vis.global_
        quality.offsamples = quality.shadowsize = 0
        size.offwidth = max(size.offwidth, *(c.width for c in cameras.values()))
        size.offheight = max(size.offheight, *(c.height for c in cameras.values()))
        self._cameras = {name: (camera, _view(model, camera)) for name, camera in cameras.items()}
        self._data = mujoco.MjData(model)
        self._renderers = {s: make_renderer(model, *s) for s in {(c.height, c.width) for c in cameras.values()}}
        for renderer in self._renderers.values():
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                renderer.scene.flags[flag] = 0
        # Also at exit, because freeing a renderer during interpreter shutdown fails.
        self._free = weakref.finalize(self, _close, list(self._renderers.values()))

    def draw(
        self, data: mujoco.MjData, sites: Mapping[str, Float[np.ndarray, "3"]]
    ) -> dict[str, UInt8[np.ndarray, "_h _w 3"]]:
        """The image of each camera, with `sites` at these positions [m]."""
        mujoco.mj_copyData(self._data, self.model, data)
        # A step ends with new positions; rendering needs their kinematics.
        mujoco.mj_forward(self.model, self._data)
        for site, position in sites.items():
            self._data.site_xpos[self.model.site(site).id] = position
        images = {}
        for name, (camera, view) in self._cameras.items():
            renderer = self._renderers[camera.height, camera.width]
            renderer.update_scene(self._data, view)
            image = renderer.render()
            images[name] = image[::-1, ::-1].copy() if camera.upside_down else image
        return images

    def close(self) -> None:
        """Frees the renderers."""
        self._free()


def _close(renderers: list[mujoco.Renderer]) -> None:
    for renderer in renderers:
        renderer.close()


def _view(model: mujoco.MjModel, camera: Camera) -> str | mujoco.MjvCamera:
    names = [model.camera(i).name for i in range(model.ncam)]
    if camera.camera is not None:
        if camera.camera not in names:
            raise InputError(f"the model has no camera {camera.camera!r}; it has: {', '.join(names) or 'none'}")
        return camera.camera
    free = mujoco.MjvCamera()
    free.lookat[:] = camera.lookat
    free.distance, free.azimuth, free.elevation = camera.distance, camera.azimuth, camera.elevation
    return free

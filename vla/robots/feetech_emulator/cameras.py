"""The cameras of a simulated arm as a stream for LeRobot's `zmq` camera: JSON of base64 JPEG, one message per frame.

Source: the message format of lerobot/cameras/zmq. Its reader expects OpenCV's color order, so images are encoded with
red and blue swapped, as by LeRobot's own sender.
"""

from __future__ import annotations

import base64
import copy
import io
import json
import threading
import time
from types import TracebackType

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vla.common.mujoco_gl import mujoco
from vla.errors import InputError
from vla.robots.feetech_emulator.arm import ServoArm

QUALITY = 95
"""Quality of the JPEG."""


class CameraStream:
    """Publishes all cameras of the scene from a thread, `fps` times per second, on 127.0.0.1:`port`.

    Entering it raises InputError if the port is in use.
    """

    def __init__(self, arm: ServoArm, port: int, fps: float) -> None:
        self.arm, self.port, self.fps = arm, port, fps
        # A separate scene over the same model: the arm's simulation must continue during rendering.
        self._scene = copy.copy(arm.scene)
        self._scene.data = mujoco.MjData(arm.scene.model)
        self.dead: frozenset[str] = frozenset()
        """Cameras with an empty image. Without an entry, LeRobot's reader would take the image of another camera."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cameras", daemon=True)
        self._failure: BaseException | None = None

    def __enter__(self) -> CameraStream:
        import zmq

        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        try:
            self._socket.bind(f"tcp://127.0.0.1:{self.port}")
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise InputError(f"camera_port={self.port} cannot be used ({error}): choose another") from error
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._context.destroy(linger=0)
        if self._failure is not None and error is None:
            raise self._failure

    def _run(self) -> None:
        try:
            due = time.monotonic()
            while not self._over.wait(max(0.0, due - time.monotonic())):
                self._socket.send_string(self._message())
                due = max(due + 1 / self.fps, time.monotonic())
        except BaseException as error:
            self._failure = error
        finally:
            self._scene.close()

    def _message(self) -> str:
        scene, source = self._scene, self.arm.scene.data
        with self.arm.lock:
            scene.data.qpos[:], captured = source.qpos, time.time()
        mujoco.mj_forward(scene.model, scene.data)
        images = {name: "" if name in self.dead else encode_image(scene.render(name)) for name in scene.cameras}
        return json.dumps({"timestamps": dict.fromkeys(images, captured), "images": images})


def encode_image(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """Encodes an RGB image as LeRobot's reader expects it."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image[..., ::-1])).save(file, "JPEG", quality=QUALITY, subsampling=0)
    return base64.b64encode(file.getvalue()).decode()

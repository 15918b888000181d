"""A simulated arm's cameras as LeRobot's `zmq` camera reads them: JSON of base64 JPEG, one message a frame.

Source: the message of lerobot/cameras/zmq. Its reader takes the colours as OpenCV decodes them, so that a picture
is encoded with red and blue changed over, as LeRobot's own sender does.
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
"""Of the JPEG."""


class CameraStream:
    """While open, a thread publishes all cameras of the scene `fps` times a second on 127.0.0.1:`port`.

    Raises InputError when the port is taken.
    """

    def __init__(self, arm: ServoArm, port: int, fps: float) -> None:
        self.arm, self.port, self.fps = arm, port, fps
        # A scene of its own over the same model: drawing takes milliseconds, in which the arm's must go on.
        self._scene = copy.copy(arm.scene)
        self._scene.data = mujoco.MjData(arm.scene.model)
        self.dead: frozenset[str] = frozenset()
        """Cameras of which no image arrives: LeRobot's reader would take another camera's where a name is missing."""
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
    """An RGB image as LeRobot's reader expects it."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image[..., ::-1])).save(file, "JPEG", quality=QUALITY, subsampling=0)
    return base64.b64encode(file.getvalue()).decode()

"""The command that installs a package into the environment of this Python."""

from __future__ import annotations

import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path


def install_command(*arguments: str) -> str:
    """The shell command equivalent to `pip install` with these arguments.

    Environments of uv have no pip, and the pip on the path belongs to another Python. In this case the command uses uv,
    if necessary the one that the Makefile downloaded.
    """
    python = shlex.quote(sys.executable)
    quoted = shlex.join(arguments)
    if find_spec("pip") is not None:
        return f"{python} -m pip install {quoted}"
    downloaded = Path(sys.prefix).parent / ".uv" / "bin" / "uv"
    uv = "uv" if shutil.which("uv") or not downloaded.is_file() else shlex.quote(str(downloaded))
    return f"{uv} pip install {quoted} --python {python}"

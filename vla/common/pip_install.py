"""How a package gets to where this Python finds it."""

from __future__ import annotations

import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path


def install_command(*arguments: str) -> str:
    """A shell command, with what `pip install` is to be given.

    uv's environments have no pip, and the pip on the path is another Python's: then it is uv, the one that the Makefile
    fetched where there is no other.
    """
    python = shlex.quote(sys.executable)
    given = shlex.join(arguments)
    if find_spec("pip") is not None:
        return f"{python} -m pip install {given}"
    own = Path(sys.prefix).parent / ".uv" / "bin" / "uv"
    uv = "uv" if shutil.which("uv") or not own.is_file() else shlex.quote(str(own))
    return f"{uv} pip install {given} --python {python}"

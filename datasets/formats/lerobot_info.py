"""meta/info.json of a LeRobot dataset, and access to required values in its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla.datasets.source_files import read_json_object
from vla.errors import InputError

INFO = Path("meta", "info.json")
NO_STEPS = "it has no steps"


def version_of(root: Path) -> str:
    """The version of the LeRobot dataset in `root`; empty if there is none.

    Raises InputError if meta/info.json exists and cannot be read as JSON.
    """
    path = root / INFO
    if not path.is_file():
        return ""
    return str(read_json_object(path).get("codebase_version", ""))


def read_info(root: Path) -> dict[str, Any]:
    """The content of meta/info.json. Raises InputError that names a missing or invalid key."""
    path = root / INFO
    info = read_json_object(path)
    for key, kind in (("codebase_version", str), ("data_path", str), ("features", dict)):
        if not isinstance(required(info, key, path), kind):
            raise InputError(f"{path}: {key!r} is {info[key]!r}, not {'an object' if kind is dict else 'a text'}")
    if not isinstance(info.get("fps"), int | float) or not 0 < info["fps"] < float("inf"):
        raise InputError(f"{path}: 'fps' is {info.get('fps')!r}, not the number of frames a second: correct it")
    for name, feature in info["features"].items():
        shape = feature.get("shape") if isinstance(feature, dict) else None
        has_shape = isinstance(shape, list) and all(isinstance(size, int) and size >= 0 for size in shape)
        if not has_shape or not isinstance(feature.get("dtype"), str):
            raise InputError(f"{path}: feature {name!r} is {feature!r}: it needs a dtype and a shape")
    return info


def required(row: Mapping[str, Any], key: str, path: Path) -> Any:
    """The value of `key`. Raises InputError that names the file at `path` if it is missing."""
    if row.get(key) is None:
        raise InputError(f"{path} has no {key!r}: it has {', '.join(map(str, row)) or 'nothing'}")
    return row[key]


def non_negative_int(row: Mapping[str, Any], key: str, path: Path) -> int:
    """The integer value of `key`, 0 or more. Raises InputError that names the file at `path` if it is not one."""
    value = required(row, key, path)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{path}: {key!r} is {value!r}, not a whole number of 0 or more")
    return value


def path_of(root: Path, info: Mapping[str, Any], template: str, **numbers: Any) -> Path:
    """The path from a template of meta/info.json such as `data_path`.

    Raises InputError if the template is missing, has unknown fields, or leads out of the dataset.
    """
    pattern = required(info, template, root / INFO)
    try:
        name = str(pattern).format(**numbers)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise InputError(f"{root / INFO}: {template!r} is {pattern!r}, which cannot be filled in ({error})") from error
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(f"{root / INFO}: {template!r} is {pattern!r}, which leads out of the dataset")
    return root / name


def data_files(root: Path) -> list[Path]:
    """The Parquet files below `data`, in the order in which LeRobot concatenates their rows."""
    return sorted(path for path in (root / "data").rglob("*.parquet") if not path.name.startswith("."))

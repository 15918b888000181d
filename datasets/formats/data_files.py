"""Data in one or several files: a path is a file, a folder, or a pattern."""

from __future__ import annotations

from pathlib import Path


def matching(path: Path) -> list[Path]:
    """The file at `path`, or the sorted files that match a pattern such as "data/train-*.parquet"."""
    if path.is_file() or "*" not in str(path):
        return [path] if path.is_file() else []
    folder = next(parent for parent in path.parents if "*" not in str(parent))
    return sorted(file for file in folder.glob(str(path.relative_to(folder))) if file.is_file())


def folder_name(path: Path) -> str:
    """The name of the data's folder: the path itself, or the folder of the file or pattern."""
    folder = path if path.is_dir() else next(parent for parent in path.parents if "*" not in str(parent))
    return folder.resolve().name

"""Data in several files: a path names one, a folder, or a pattern."""

from __future__ import annotations

from pathlib import Path


def matching(path: Path) -> list[Path]:
    """The file, or the files that a pattern such as "data/train-*.parquet" names, sorted."""
    if path.is_file() or "*" not in str(path):
        return [path] if path.is_file() else []
    folder = next(parent for parent in path.parents if "*" not in str(parent))
    return sorted(file for file in folder.glob(str(path.relative_to(folder))) if file.is_file())


def folder_name(path: Path) -> str:
    """The name of the data's folder: the path itself, or the one of the file or the pattern."""
    folder = path if path.is_dir() else next(parent for parent in path.parents if "*" not in str(parent))
    return folder.resolve().name

"""Image files of a folder or zip, found by their id."""

from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

__all__ = ["image_id", "image_reader"]


def image_reader(images: Path) -> Callable[[str], bytes | None]:
    """Find an image's file by its id (the path without extension) in a folder or zip."""
    if images.is_dir():
        files = {image_id(p.relative_to(images)): p for p in images.rglob("*") if p.is_file()}
        return lambda name: files[name].read_bytes() if name in files else None
    bundle = ZipFile(images)
    members = {image_id(Path(name)): name for name in bundle.namelist()}
    return lambda name: bundle.read(members[name]) if name in members else None


def image_id(path: Path) -> str:
    """Give an image's id: its path without the extension."""
    return path.with_suffix("").as_posix()

"""Image files of a folder or zip, found by their id."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from features._checks import first_few

__all__ = ["image_id", "image_reader"]

# A member that unpacks to more is no picture; what is packed below this may be any picture.
MAX_RATIO, MIN_PACKED = 200, 100_000


def image_reader(images: Path, image_ids: Sequence[str] = ()) -> Callable[[str], bytes | None]:
    """Find an image's file by its id (the path without extension) in a folder or zip.

    Raises
    ------
    FileNotFoundError
        When nothing is there.
    ValueError
        For a file that is no zip, and when none of the `image_ids` is inside.
    """
    if images.is_dir():
        places = {image_id(p.relative_to(images)): p for p in images.rglob("*") if p.is_file()}
        _check_ids(images, places, image_ids)
        return lambda name: _read_file(images, places[name]) if name in places else None
    if not images.is_file():
        raise FileNotFoundError(f"there is no folder or zip of images at {images}")
    try:
        bundle = ZipFile(images)
    except (BadZipFile, OSError, ValueError) as error:
        raise ValueError(
            f"{images} is no zip of images ({error}). Give the folder or the zip that holds them."
        ) from error
    members = {image_id(Path(name)): name for name in bundle.namelist()}
    _check_ids(images, members, image_ids)
    return lambda name: _read_member(bundle, members[name]) if name in members else None


def image_id(path: Path) -> str:
    """Give an image's id: its path without the extension."""
    return path.with_suffix("").as_posix()


def _check_ids(images: Path, found: Mapping[str, object], wanted: Sequence[str]) -> None:
    if len(wanted) and not any(str(name) in found for name in wanted):
        raise ValueError(
            f"{images} holds none of the {len(wanted):,} images, whose ids are "
            f"{first_few(wanted, 3)}; it holds {first_few(list(found), 3) or 'nothing'}. An id is "
            "the path inside, without the extension."
        )


def _read_file(images: Path, path: Path) -> bytes | None:
    """Content of a file; None behind a link that leaves the folder."""
    return path.read_bytes() if path.resolve().is_relative_to(images.resolve()) else None


def _read_member(bundle: ZipFile, name: str) -> bytes:
    member = bundle.getinfo(name)
    if member.file_size > MAX_RATIO * max(member.compress_size, MIN_PACKED):
        raise ValueError(
            f"{name!r} in {bundle.filename} unpacks to {member.file_size:,} bytes, more than "
            f"{MAX_RATIO} times its size: this is no picture. Leave it out."
        )
    try:
        return bundle.read(member)
    except (BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"{name!r} in {bundle.filename} cannot be read: {error}. Pack it again."
        ) from error

"""Find and decode images: a folder or a zip in, (height, width, channels) arrays out."""

from __future__ import annotations

import io
import lzma
import math
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from tokenize import TokenError
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

__all__ = ["ImageError", "ImageSource", "Pixels", "decode_image", "open_images", "to_uint8"]

Pixels: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]

SUFFIXES = frozenset(
    (
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm",
        ".pgm", ".pbm", ".pnm", ".npy", ".jp2", ".j2k", ".avif", ".tga", ".ico",
    )
)  # fmt: skip
# What a file may be, whatever it is called. Pillow knows more, and hands PostScript to a program,
# Ghostscript: a file called .png would run what its author wrote.
FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA",
)  # fmt: skip
ORIENTATION = 0x0112  # tag of EXIF: how the viewer must turn the image
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Beyond this an image is taken for a decompression bomb; Pillow's own limit for an error.
MAX_PIXELS = 178_956_970
# A zip member that unpacks to this many times its size, and more than some megabytes, is a bomb.
MAX_RATIO, MIN_PACKED = 200, 100_000
# What Pillow and numpy raise on files that are cut short, damaged or no images at all.
_UNREADABLE = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError,
    struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError, TokenError,
    Image.DecompressionBombError,
)  # fmt: skip


class ImageError(ValueError):
    """An image that cannot be used; the message names its file and the reason.

    Examples
    --------
    >>> try:
    ...     decode_image(b"no image", "broken.png")
    ... except ImageError as error:
    ...     print("broken.png" in str(error))
    True
    """


@dataclass(frozen=True)
class ImageSource:
    """The images of one folder or zip file, in order of id; light enough to send to a worker.

    Parameters
    ----------
    path : str
        The folder or the zip file.
    names : tuple of str
        File names relative to it, with "/".
    ids : tuple of str
        Image ids: the names without their extension.
    sizes : tuple of int
        Bytes of each file, to notice that files have changed.

    Examples
    --------
    >>> source = ImageSource("drawings", ("sea/1.png", "sea/2.png"), ("sea/1", "sea/2"), (10, 20))
    >>> source.common_folder
    'sea'
    """

    path: str
    names: tuple[str, ...]
    ids: tuple[str, ...]
    sizes: tuple[int, ...]
    _zip: list[zipfile.ZipFile] = field(default_factory=list, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.names)

    def __reduce__(self) -> tuple[Any, ...]:
        # An open zip handle belongs to one process.
        return ImageSource, (self.path, self.names, self.ids, self.sizes)

    @property
    def is_zip(self) -> bool:
        """Whether the images lie in a zip file."""
        return Path(self.path).is_file()

    def read_bytes(self, index: int) -> bytes:
        """Return the file of image `index` as it is; raises what reading raises."""
        if not self.is_zip:
            return (Path(self.path) / self.names[index]).read_bytes()
        if not self._zip:
            self._zip.append(zipfile.ZipFile(self.path))
        _refuse_zip_bomb(self._zip[0].getinfo(self.names[index]))
        return self._zip[0].read(self.names[index])

    def decode(self, index: int) -> Pixels:
        """Pixels of image `index`, shape (height, width, channels); see `decode_image`."""
        try:
            data = self.read_bytes(index)
        except _UNREADABLE as error:
            raise ImageError(_unreadable(self.names[index], error)) from error
        return decode_image(data, self.names[index])

    def without_folder(self, folder: str) -> ImageSource:
        """Return the same images with ids relative to `folder`, which must hold them all."""
        prefix = folder.rstrip("/") + "/"
        if not all(i.startswith(prefix) for i in self.ids):
            raise ValueError(f"not every image of {self.path} lies in the folder {folder!r}")
        return replace(self, ids=tuple(i[len(prefix) :] for i in self.ids), _zip=[])

    def take(self, indices: Iterable[int]) -> ImageSource:
        """Return only the images at these positions."""
        rows = list(indices)
        return ImageSource(
            self.path,
            tuple(self.names[i] for i in rows),
            tuple(self.ids[i] for i in rows),
            tuple(self.sizes[i] for i in rows),
        )

    @property
    def common_folder(self) -> str:
        """The deepest folder that holds every image, "" when that is the source itself."""
        folders = [PurePosixPath(n).parent.parts for n in self.names]
        if not folders:
            return ""
        low, high = min(folders), max(folders)
        shared = 0
        while shared < min(len(low), len(high)) and low[shared] == high[shared]:
            shared += 1
        return "/".join(low[:shared])


def open_images(path: str | Path) -> ImageSource:
    """List the images of a folder (and the folders in it) or of a zip file.

    An image's id is its path inside `path` without the extension. Hidden files and files that are
    no images by their extension are left out. An array file (``.npy``) of shape
    (height, width, channels) is an image with any number of channels.

    Parameters
    ----------
    path : str or Path
        A folder or a zip file.

    Raises
    ------
    FileNotFoundError
        When nothing is there.
    ValueError
        When it holds no images, when two files share an id, or when a zip member's name leaves the
        archive.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (4, 2)).save(folder + "/red.png")
    ...     open_images(folder).ids
    ('red',)
    """
    place = Path(path)
    if place.is_dir():
        found = _list_folder(place)
    elif place.is_file():
        found = _list_zip(place)
    else:
        raise FileNotFoundError(f"IMAGES must be a folder or a zip file; there is no {place}")
    if not found:
        raise ValueError(
            f"{place} holds no images; looked for {' '.join(sorted(SUFFIXES))} in it and its "
            f"folders"
        )
    found.sort(key=lambda entry: (_id_of(entry[0]), entry[0]))
    names = tuple(name for name, _ in found)
    _refuse_no_text(place, names)
    ids = tuple(_id_of(name) for name in names)
    _refuse_duplicates(place, names, ids)
    return ImageSource(str(place), names, ids, tuple(size for _, size in found))


def _list_folder(folder: Path) -> list[tuple[str, int]]:
    found, place = [], folder.resolve()
    for file in folder.rglob("*"):
        name = file.relative_to(folder).as_posix()
        if file.is_symlink():
            _refuse_link(folder, place, file, name)
        if _is_image_name(name) and file.is_file():
            found.append((name, file.stat().st_size))
    return found


def _refuse_link(folder: Path, place: Path, link: Path, name: str) -> None:
    """Refuse links that would lose images without a word, or lead to other people's files."""
    if _is_image_name(name) and not _stays_inside(link, place):
        raise ValueError(
            f"an image must lie in its folder; {folder} holds a link that leaves it: "
            f"{name!r}. Copy the file, or give the folder that it lies in."
        )
    if link.is_dir() and not _is_hidden(name):
        raise ValueError(
            f"links to folders are not followed, and {folder} holds one: {name!r}. Copy the "
            "folder, or remove the link."
        )


def _stays_inside(link: Path, place: Path) -> bool:
    """Whether a link leads to something inside the folder; one that leads nowhere does not."""
    try:
        return link.resolve(strict=True).is_relative_to(place)
    except (OSError, RuntimeError):  # RuntimeError: a link to itself
        return False


def _list_zip(archive: Path) -> list[tuple[str, int]]:
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
    except _UNREADABLE as error:  # a damaged directory ends in more than BadZipFile
        raise ValueError(
            f"IMAGES must be a folder or a zip file; {archive} is neither ({error})"
        ) from error
    for member in members:
        _refuse_escape(archive, member.filename)
    files = [m for m in members if _is_image_name(m.filename) and not m.is_dir()]
    return [(m.filename, m.file_size) for m in files]


def _refuse_escape(archive: Path, name: str) -> None:
    """Refuse a name that would leave the archive where anybody unpacked it."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts or name.startswith(("/", "\\")) or (parts and ":" in parts[0]):
        raise ValueError(
            f"a zip's file names must stay inside it; {archive} holds {name!r}. Pack it again "
            f"without '..' and absolute paths."
        )


def _refuse_zip_bomb(member: zipfile.ZipInfo) -> None:
    """Refuse a member that would unpack to far more than any image: pictures hardly compress."""
    if member.file_size > MAX_RATIO * max(member.compress_size, MIN_PACKED):
        raise ValueError(
            f"it unpacks from {member.compress_size:,} to {member.file_size:,} bytes, which no "
            f"image does"
        )


def _is_image_name(name: str) -> bool:
    return not _is_hidden(name) and PurePosixPath(name).suffix.lower() in SUFFIXES


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _id_of(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _refuse_no_text(place: Path, names: Sequence[str]) -> None:
    """Refuse names that no store and no table can hold: bytes that are no UTF-8."""
    odd = [name for name in names if not _is_text(name)]
    if odd:
        raise ValueError(
            f"file names must be UTF-8; {place} holds {len(odd):,} that are not, first: "
            f"{odd[0]!a}. Rename them."
        )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_duplicates(place: Path, names: Sequence[str], ids: Sequence[str]) -> None:
    twice = [k for k, (one, next_) in enumerate(pairwise(ids)) if one == next_]
    if twice:
        k = twice[0]
        raise ValueError(
            f"image ids must be unique (an id is the path without its extension); {place} holds "
            f"{len(twice):,} repeated, first {ids[k]!r}: {names[k]} and {names[k + 1]}. "
            f"Rename one of them."
        )


def decode_image(data: bytes, name: str) -> Pixels:
    """Decode one image to what a viewer would show.

    EXIF orientation is applied, palettes are resolved, transparency is laid on white, CMYK becomes
    RGB, grey becomes three equal channels, and of an animation the first frame is taken. 16-bit
    grey stays 16-bit.

    Parameters
    ----------
    data : bytes
        The file.
    name : str
        Its name, for messages; ``.npy`` is read as an array.

    Returns
    -------
    uint8 or uint16 array of shape (height, width, channels)
        Three channels, except from ``.npy``.

    Raises
    ------
    ImageError
        When the file is damaged, cut short, no image, or larger than 178,956,970 pixels.

    Examples
    --------
    >>> file = io.BytesIO()
    >>> Image.new("L", (3, 2), 7).save(file, "PNG")
    >>> decode_image(file.getvalue(), "grey.png").shape
    (2, 3, 3)
    """
    try:
        if name.lower().endswith(".npy"):
            return _decode_array(data)
        with warnings.catch_warnings():
            # The limit below is ours; Pillow's remarks on odd metadata do not change the pixels.
            warnings.simplefilter("ignore")
            return _decode_picture(data)
    except _UNREADABLE as error:
        raise ImageError(_unreadable(name, error)) from error


def _decode_picture(data: bytes) -> Pixels:
    Image.init()
    known = [kind for kind in FORMATS if kind in Image.OPEN]
    with Image.open(io.BytesIO(data), formats=known) as opened:
        _refuse_bomb(opened.size)
        # Opened at its first frame: an animation is never sought further.
        opened.load()
        image = _upright(opened)
        if image.mode == "F" or image.mode.startswith("I"):
            return _deep_grey(image)
        return np.asarray(_to_rgb(image))


def _upright(image: Image.Image) -> Image.Image:
    """Turn the image as its EXIF says; damaged EXIF says nothing, as in every viewer."""
    try:
        turn = image.getexif().get(ORIENTATION)
    except _UNREADABLE:
        return image
    return image.transpose(TURNS[turn]) if turn in TURNS else image


def _refuse_bomb(size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(
            f"{size[0]} x {size[1]} pixels are more than the {MAX_PIXELS:,} that are allowed"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(layered, mask=layered.getchannel("A"))
        return white
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> Pixels:
    """Grey deeper than 8 bits, as three uint16 channels."""
    values = np.asarray(image)
    if image.mode == "F" or values.size == 0 or values.min() < 0 or values.max() > 65_535:
        raise ValueError(
            f"mode {image.mode} must hold whole numbers from 0 to 65,535; convert it to 8 or 16 bit"
        )
    grey = values.astype(np.uint16)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _decode_array(data: bytes) -> Pixels:
    _refuse_missing_bytes(io.BytesIO(data), len(data))
    array = np.load(io.BytesIO(data), allow_pickle=False)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.size == 0 or array.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"an array image must be uint8 or uint16 of shape (height, width, channels); "
            f"got {array.dtype} of shape {array.shape}"
        )
    _refuse_bomb(array.shape[:2])
    return np.asarray(array)


def _refuse_missing_bytes(file: io.BytesIO, n_bytes: int) -> None:
    """Refuse a header that asks for other memory than the file fills: it may ask for terabytes."""
    version = np.lib.format.read_magic(file)
    one = version == (1, 0)
    read = np.lib.format.read_array_header_1_0 if one else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    wanted, there = math.prod(shape) * dtype.itemsize, n_bytes - file.tell()
    if dtype.kind != "O" and wanted != there:
        raise ValueError(
            f"its header asks for {wanted:,} bytes of shape {shape}; there are {there:,}"
        )


def to_uint8(pixels: Pixels) -> NDArray[np.uint8]:
    """Bring 16-bit pixels to 8 bits, rounded: 65,535 becomes 255.

    Examples
    --------
    >>> to_uint8(np.array([0, 128, 129, 65_535], dtype=np.uint16)).tolist()
    [0, 0, 1, 255]
    """
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _unreadable(name: str, error: Exception) -> str:
    reason = str(error).replace("<_io.BytesIO object at ", "<").strip() or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = "it is no image, or damaged at its beginning"
    return f"cannot read image {name}: {reason}"

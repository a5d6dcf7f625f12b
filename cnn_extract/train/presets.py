"""The recipes that ship with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from cnn_extract.train.recipe import Recipe
from cnn_extract.train.toml import parse_recipe, read_recipe

__all__ = ["find_recipe", "preset_names", "preset_text"]


def preset_names() -> list[str]:
    """Names of the presets, sorted.

    Examples
    --------
    >>> "imet-1st" in preset_names()
    True
    """
    folder = resources.files("cnn_extract") / "recipes"
    files = (entry.name for entry in folder.iterdir())
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def preset_text(name: str) -> str:
    """TOML of a preset, with its comments.

    Raises
    ------
    ValueError
        For an unknown name.

    Examples
    --------
    >>> preset_text("imet-1st").splitlines()[0].startswith("#")
    True
    """
    if name not in preset_names():
        raise ValueError(
            f"there is no recipe {name!r}: neither a file nor one of {', '.join(preset_names())}"
        )
    file = resources.files("cnn_extract") / "recipes" / f"{name}.toml"
    return file.read_text(encoding="utf-8")


def find_recipe(given: str) -> Recipe:
    """Read a preset by name, or a recipe file by path.

    Examples
    --------
    >>> find_recipe("imet-1st").name
    'imet-1st'
    """
    if given.endswith(".toml") or Path(given).is_file():
        return read_recipe(given)
    return parse_recipe(preset_text(given), name=given, where=f"preset {given}")

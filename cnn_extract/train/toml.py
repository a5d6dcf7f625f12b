"""Recipes as TOML: read with every key and value checked, changed one by one, written whole.

Stages run one after the other; what a stage does not say it keeps from the stage before it.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from cnn_extract.train.recipe import Recipe, Stage, refuse_contradictions

__all__ = ["parse_recipe", "read_recipe", "to_toml", "with_settings"]

Table = TypeVar("Table")


def read_recipe(path: str | Path) -> Recipe:
    r"""Read a recipe from a TOML file; its name is the file's.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When it is no TOML, or a key or a value is not allowed; names the nearest key.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "mine.toml").write_text("folds = 4\n")
    ...     read_recipe(Path(folder, "mine.toml")).folds
    4
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no TOML file: {error}. Save it as UTF-8.") from error
    return parse_recipe(text, name=file.stem, where=str(file))


def parse_recipe(text: str, *, name: str, where: str = "the recipe") -> Recipe:
    r"""Read a recipe from TOML text.

    Parameters
    ----------
    text : str
    name : str
        The recipe's name; `name` in the text goes before it.
    where : str
        What errors call the text.

    Examples
    --------
    >>> recipe = parse_recipe("[[stage]]\nepochs = 2\nlr = 0.1\n[[stage]]\nlr = 0.01", name="x")
    >>> [(stage.epochs, stage.lr) for stage in recipe.stage]
    [(2, 0.1), (2, 0.01)]
    >>> parse_recipe("[model]\nhaed = 'mlp'", name="x")
    Traceback (most recent call last):
    ...
    ValueError: the recipe: [model] has no setting 'haed'; did you mean 'head'?
    """
    try:
        given = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no TOML file: {_reason(error)}") from error
    return _build(given, name, where)


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _build(given: Mapping[str, Any], name: str, where: str) -> Recipe:
    tables = {f.name: f for f in fields(Recipe)}
    _refuse_unknown(given, tables, where, "the top level")
    values: dict[str, Any] = {"name": name}
    for key, value in given.items():
        kind = _types(Recipe)[key]
        if key == "stage":
            values[key] = _stages(value, where)
        elif dataclasses.is_dataclass(kind):
            values[key] = _fill(typing.cast(Any, kind)(), value, where, f"[{key}]")
        else:
            values[key] = _value(value, kind, tables[key], where, key)
    recipe = Recipe(**values)
    refuse_contradictions(recipe, where)
    return recipe


def _stages(given: Any, where: str) -> tuple[Stage, ...]:
    if not isinstance(given, list) or not given:
        raise ValueError(f"{where}: write each stage as a table [[stage]]")
    stages: list[Stage] = []
    for k, table in enumerate(given):
        # A name and its domain's copies belong to one stage; everything else carries on.
        before = replace(stages[-1], name="") if stages else Stage()
        stages.append(_fill(before, table, where, f"[[stage]] {k + 1}"))
    return tuple(stages)


def _fill(table: Table, given: Any, where: str, place: str) -> Table:
    """Replace the values of a settings table by those given."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: {place} must be a table; got {given!r}")
    kind: Any = type(table)
    known = {f.name: f for f in fields(kind)}
    _refuse_unknown(given, known, where, place)
    types = _types(kind)
    values = {k: _value(v, types[k], known[k], where, f"{place} {k}") for k, v in given.items()}
    return typing.cast(Table, replace(typing.cast(Any, table), **values))


def _refuse_unknown(
    given: Mapping[str, Any], known: Mapping[str, Any], where: str, place: str
) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"{where}: {place} has no setting {key!r}; {hint}")


def _types(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _value(given: Any, kind: Any, about: dataclasses.Field[Any], where: str, place: str) -> Any:
    """Bring a TOML value to the field's type, and check it."""
    value, wanted = _convert(given, kind)
    if wanted:
        raise ValueError(f"{where}: {place} must be {wanted}; got {given!r}")
    check = about.metadata.get("check")
    rule = check(value) if check else None
    if rule:
        raise ValueError(f"{where}: {place} must be {rule}; got {given!r}")
    return value


_PLAIN = {bool: "true or false", int: "a whole number", str: "text"}


def _convert(given: Any, kind: Any) -> tuple[Any, str | None]:
    """Give the value in the wanted type, or what it should have been."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return _convert_all(given, inner[0])
    if origin is not None:
        return _convert_mapping(given, inner[1])
    if kind is float:
        if not isinstance(given, (int, float)) or isinstance(given, bool):
            return given, "a number"
        # Whole numbers of TOML have no end; those of a float have.
        fits = abs(given) <= sys.float_info.max
        return (float(given), None) if fits else (given, "a finite number")
    return (given, None) if type(given) is kind else (given, _PLAIN[kind])


def _convert_all(given: Any, kind: Any) -> tuple[Any, str | None]:
    if not isinstance(given, Sequence) or isinstance(given, str):
        return given, "a list"
    pairs = [_convert(v, kind) for v in given]
    return tuple(v for v, _ in pairs), next((f"a list, each {w}" for _, w in pairs if w), None)


def _convert_mapping(given: Any, kind: Any) -> tuple[Any, str | None]:
    if not isinstance(given, Mapping):
        return given, "a table"
    pairs = {str(k): _convert(v, kind) for k, v in given.items()}
    wrong = next((f"a table, each {w}" for _, w in pairs.values() if w), None)
    return {k: v for k, (v, _) in pairs.items()}, wrong


def with_settings(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """Change single settings, each written ``table.key=value`` as in TOML.

    ``stage.key=value`` changes every stage.

    Examples
    --------
    >>> changed = with_settings(Recipe("x"), ["input.size=64", "model.name='test_resnet'"])
    >>> changed.input.size, changed.model.name
    (64, 'test_resnet')
    """
    for setting in settings:
        recipe = _with_setting(recipe, setting)
    if settings:
        refuse_contradictions(recipe, "--set")
    return recipe


def _with_setting(recipe: Recipe, setting: str) -> Recipe:
    place, equals, text = setting.partition("=")
    table, _, key = place.strip().rpartition(".")
    if not equals or not key:
        raise ValueError(
            f"--set must be TABLE.KEY=VALUE, for example input.size=64; got {setting!r}"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    if not table:
        return _fill(recipe, {key: value}, "--set", "the top level")
    known = [f.name for f in fields(Recipe) if f.name not in ("name", "about", "folds")]
    _refuse_unknown({table: value}, dict.fromkeys(known), "--set", "a recipe")
    if table == "stage":
        stages = tuple(_fill(s, {key: value}, "--set", "[stage]") for s in recipe.stage)
        return replace(recipe, stage=stages)
    filled = _fill(getattr(recipe, table), {key: value}, "--set", f"[{table}]")
    return replace(recipe, **{table: filled})


def to_toml(recipe: Recipe) -> str:
    r"""Write every setting of a recipe as TOML, defaults included.

    Examples
    --------
    >>> recipe = parse_recipe("[[stage]]\nlr = 0.1", name="x")
    >>> parse_recipe(to_toml(recipe), name="x") == recipe
    True
    """
    lines: list[str] = []
    tables: list[str] = []
    for key, value in recipe.as_dict().items():
        if key == "stage":
            for stage in value:
                tables += ["", "[[stage]]", *_lines(stage)]
        elif isinstance(value, dict):
            tables += ["", f"[{key}]", *_lines(value)]
        else:
            lines.append(f"{key} = {_text(value)}")
    return "\n".join([*lines, *tables]) + "\n"


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_text(value)}" for key, value in table.items()]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_text(k)} = {_text(v)}" for k, v in value.items()) + " }"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_text, value)) + "]"
    return repr(value)

"""Options of the command line as text: which blocks, which candidates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from features.assemble import BlockSpec, find_block
from features.candidates import CandidateSpec, resolve_threshold

__all__ = ["parse_blocks", "parse_candidates"]


def parse_blocks(text: str) -> BlockSpec:
    """Read block names, separated by commas, each with its options after colons.

    Examples
    --------
    >>> parse_blocks("ranks,combinations:order=3:operators=sum+ratio")
    (('ranks', {}), ('combinations', {'order': 3, 'operators': ('sum', 'ratio')}))
    >>> parse_blocks("default")
    'default'
    >>> parse_blocks("default,combinations")
    (('default', {}), ('combinations', {}))
    """
    if text.strip() == "default":
        return "default"
    chosen = tuple(_parse_block(part.strip()) for part in text.split(","))
    names = [name for name, _ in chosen]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"--blocks names {twice[0]!r} more than once.")
    return chosen


def _parse_block(text: str) -> tuple[str, Mapping[str, Any]]:
    name, *options = text.split(":")
    if text == "default":
        return text, {}
    known, given = find_block(name).options, {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or key not in known:
            listed = ", ".join(f"{k}={_as_text(v)}" for k, v in known.items()) or "no options"
            raise ValueError(
                f"options of a block are written name:key=value; got {option!r} in {text!r}. "
                f"Block {name!r} has (with defaults): {listed}."
            )
        given[key] = _parse_value(value, known[key], where=f"{name}:{option}")
    return name, given


def _parse_value(text: str, default: Any, *, where: str) -> Any:
    """Read a value of its default's type; values of a tuple are joined by "+"."""
    if isinstance(default, tuple):
        return tuple(_parse_value(part, default[0], where=where) for part in text.split("+"))
    kind = type(default)
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{where}: expected {kind.__name__}, got {text!r}.") from None


def _as_text(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


def parse_candidates(text: str) -> CandidateSpec:
    """Read how many candidates an image gets.

    Examples
    --------
    >>> parse_candidates("auto"), parse_candidates("all"), parse_candidates("50")
    ('auto', None, 50)
    >>> parse_candidates("culture=20,tag=30"), parse_candidates("threshold=0.01")
    ({'culture': 20, 'tag': 30}, 0.01)
    """
    text = text.strip()
    if text in ("auto", "all"):
        return None if text == "all" else "auto"
    if text.isdecimal():
        return int(text)
    # A class group may be called "threshold": then the number is whole, as in group=number.
    if text.startswith("threshold=") and not text.removeprefix("threshold=").isdecimal():
        return resolve_threshold(text)
    chosen: dict[str, int] = {}
    for part in text.split(","):
        # A group's name may hold "=" itself.
        group, equals, number = part.strip().rpartition("=")
        if not equals or not number.isdecimal() or group in chosen:
            raise ValueError(
                f"--candidates must be auto, all, a number, threshold=0.01, or group=number for "
                f"every class group, separated by commas; got {part!r} in {text!r}."
            )
        chosen[group] = int(number)
    return chosen

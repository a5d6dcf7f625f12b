"""Line charts as inline SVG that follow the page's light or dark colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape

__all__ = ["Line", "line_chart"]

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 12, 46


@dataclass(frozen=True)
class Line:
    """One series of a chart; `colour` is 1 to 4, the page's series colours.

    Attributes
    ----------
    label : str
        Name in the legend; "" for a line that needs none.
    x, y : sequences of float of the same length
    mark : tuple of two floats, optional
        A point to mark, as the threshold that was chosen.
    dashed, dots : bool
        Draw the line dashed; draw its points.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 1
    dashed: bool = False
    dots: bool = False
    mark: tuple[float, float] | None = None


def line_chart(
    lines: Sequence[Line], *, title: str, x_label: str, y_label: str, log: bool = False
) -> Markup:
    """Draw lines over common axes.

    Parameters
    ----------
    lines : sequence of Line
        At least one with at least one finite point.
    title : str
        What the chart shows, for readers who do not see it.
    x_label, y_label : str
    log : bool, default False
        Logarithmic axes, both over the same range (for calibration).

    Returns
    -------
    Markup
        An ``<svg>`` element; all text in it is escaped.

    Examples
    --------
    >>> svg = line_chart([Line("a<b", [0, 1], [0, 1])], title="t", x_label="x", y_label="y")
    >>> "a&lt;b" in svg and "a<b" not in svg
    True
    """
    axes = _Axes.over(lines, log=log)
    parts = [axes.draw(x_label, y_label)]
    parts += [_draw_line(line, axes) for line in lines]
    body = Markup("").join(parts)
    legend = Markup("").join(
        Markup('<span class="key s{}{}">{}</span>').format(
            line.colour, " dashed" if line.dashed else "", line.label
        )
        for line in lines
        if line.label
    )
    return Markup(
        '<div class="legend">{}</div><svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(legend, WIDTH, HEIGHT, title, body)


@dataclass(frozen=True)
class _Axes:
    """Data ranges and how they map to the drawing."""

    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    log: bool

    @classmethod
    def over(cls, lines: Sequence[Line], *, log: bool) -> _Axes:
        x = _finite([v for line in lines for v in line.x], positive=log)
        y = _finite([v for line in lines for v in line.y], positive=log)
        if log:
            ticks = _decades(min(min(x), min(y)), max(max(x), max(y)))
            return cls(ticks, ticks, log)
        return cls(_round_ticks(min(x), max(x)), _round_ticks(min(y), max(y)), log)

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = self._share(x, self.x_ticks) * (WIDTH - LEFT - RIGHT) + LEFT
        down = (1 - self._share(y, self.y_ticks)) * (HEIGHT - TOP - BOTTOM) + TOP
        return round(across, 1), round(down, 1)

    def _share(self, value: float, ticks: Sequence[float]) -> float:
        low, high = ticks[0], ticks[-1]
        if self.log:
            value, low, high = (float(np.log10(max(v, ticks[0]))) for v in (value, low, high))
        return (value - low) / (high - low)

    def draw(self, x_label: str, y_label: str) -> Markup:
        """Grid lines, tick labels and axis names."""
        parts = []
        low_x, low_y = self.x_ticks[0], self.y_ticks[0]
        for tick in self.x_ticks:
            x, y = self.at(tick, low_y)
            parts.append(_text(x, y + 18, _number(tick), "middle"))
        for tick in self.y_ticks:
            x, y = self.at(low_x, tick)
            parts.append(
                Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                    x, WIDTH - RIGHT, y, y
                )
            )
            parts.append(_text(x - 6, y + 4, _number(tick), "end"))
        middle = (WIDTH + LEFT - RIGHT) / 2
        parts.append(_text(middle, HEIGHT - 8, x_label, "middle"))
        half = (HEIGHT - BOTTOM + TOP) / 2
        turned = Markup('<text class="axis" transform="translate(14 {}) rotate(-90)" {}>{}</text>')
        parts.append(turned.format(half, Markup('text-anchor="middle"'), y_label))
        return Markup("").join(parts)


def _draw_line(line: Line, axes: _Axes) -> Markup:
    points = [
        axes.at(x, y) for x, y in zip(line.x, line.y, strict=True) if np.isfinite([x, y]).all()
    ]
    path = " ".join(f"{x},{y}" for x, y in points)
    kind = f"line s{line.colour}" + (" dashed" if line.dashed else "")
    parts = [Markup('<polyline class="{}" points="{}"/>').format(kind, path)]
    marked = [axes.at(*line.mark)] if line.mark is not None else []
    dots = [(x, y, 3) for x, y in points if line.dots] + [(x, y, 5) for x, y in marked]
    parts += [
        Markup('<circle class="dot s{}" cx="{}" cy="{}" r="{}"/>').format(line.colour, x, y, r)
        for x, y, r in dots
    ]
    return Markup("").join(parts)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text class="axis" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        round(x, 1), round(y, 1), anchor, escape(text)
    )


def _number(value: float) -> str:
    return f"{value:.6g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}"


def _finite(values: Sequence[Any], *, positive: bool) -> list[float]:
    kept = [float(v) for v in values if np.isfinite(v) and (v > 0 or not positive)]
    return kept or [0.1, 1.0]


def _decades(low: float, high: float) -> list[float]:
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    return [10.0**k for k in range(first, max(last, first + 1) + 1)]


def _round_ticks(low: float, high: float) -> list[float]:
    """About five ticks on round numbers that enclose the range."""
    spread = max(high - low, 1e-6)
    power = 10.0 ** np.floor(np.log10(spread / 4))
    step = power * min((m for m in (1, 2, 2.5, 5, 10) if m * power >= spread / 5), default=10)
    first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
    return [round(float(k * step), 10) for k in np.arange(first, max(last, first + 1) + 1)]

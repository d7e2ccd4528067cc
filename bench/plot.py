"""The plots of docs/performance.md: `python -m bench.plot FIGURES.json FOLDER`, with the file of bench.goals.

Writes `rate-by-size.svg` (MB/s by body size, both logarithmic, beside the bare socket) and `latency.svg` (the
share of events that have arrived by then).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

WIDTH, HEIGHT = 780, 440
LEFT, RIGHT, TOP, BOTTOM = 80, 730, 90, 390  # of the area between the axes
COLOURS = ('#0b5cad', '#c2570c')
DASHES = ('none', '6 4')
SVG = 'http://www.w3.org/2000/svg'

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, with a line at each of `marks`."""

    name: str
    low: float
    high: float
    marks: Sequence[float]
    logarithmic: bool = True

    def share(self, value: float) -> float:
        """How far along it is, 0 to 1."""
        scale: Callable[[float], float] = math.log10 if self.logarithmic else float
        return (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))


def decades(name: str, values: Iterable[float]) -> Axis:
    """A logarithmic axis of whole powers of ten around the values."""
    found = list(values)
    low, high = math.floor(math.log10(min(found))), math.ceil(math.log10(max(found)))
    marks = [10.0**power for power in range(low, max(high, low + 1) + 1)]
    return Axis(name, marks[0], marks[-1], marks)


def chart(title: str, x: Axis, y: Axis, lines: Mapping[str, Points], dots: bool) -> Xml.Element:
    """An SVG document; the first two lines are solid, the next two dashed."""
    view = f'0 0 {WIDTH} {HEIGHT}'
    svg = Xml.Element('svg', {'xmlns': SVG, 'viewBox': view, 'font-family': 'sans-serif', 'font-size': '13'})
    draw(svg, 'rect', width=WIDTH, height=HEIGHT, fill='#ffffff')
    draw(svg, 'text', title, x=LEFT, y=24, font_size=16)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across, up = x.share(point[0]), y.share(point[1])
        return LEFT + across * (RIGHT - LEFT), BOTTOM - up * (BOTTOM - TOP)

    for mark in x.marks:
        at, _ = place((mark, y.low))
        draw(svg, 'line', x1=at, y1=TOP, x2=at, y2=BOTTOM, stroke='#dddddd')
        draw(svg, 'text', f'{mark:,.10g}', x=at, y=BOTTOM + 18, text_anchor='middle')
    for mark in y.marks:
        _, at = place((x.low, mark))
        draw(svg, 'line', x1=LEFT, y1=at, x2=RIGHT, y2=at, stroke='#dddddd')
        draw(svg, 'text', f'{mark:,.10g}', x=LEFT - 8, y=at + 4, text_anchor='end')
    draw(svg, 'text', x.name, x=(LEFT + RIGHT) / 2, y=BOTTOM + 40, text_anchor='middle')
    draw(svg, 'text', y.name, x=LEFT - 8, y=TOP - 12, text_anchor='end')
    for number, (name, points) in enumerate(lines.items()):
        pen: dict[str, Any] = {
            'stroke': COLOURS[number % 2],
            'stroke_width': 2,
            'stroke_dasharray': DASHES[number // 2],
        }
        path = ' '.join(f'{across:.1f},{up:.1f}' for across, up in map(place, points))
        draw(svg, 'polyline', points=path, fill='none', **pen)
        for across, up in map(place, points) if dots else ():
            draw(svg, 'circle', cx=across, cy=up, r=4, fill=COLOURS[number % 2])
        at, up = LEFT + 20 + 340 * (number % 2), 44 + 18 * (number // 2)
        draw(svg, 'line', x1=at, y1=up, x2=at + 28, y2=up, **pen)
        draw(svg, 'text', name, x=at + 36, y=up + 4)
    return svg


def draw(svg: Xml.Element, tag: str, words: str = '', **attributes: object) -> None:
    """Add an element; '_' for '-' in the names."""
    values = {name: f'{at:.1f}' if isinstance(at, float) else str(at) for name, at in attributes.items()}
    Xml.SubElement(svg, tag, {name.replace('_', '-'): at for name, at in values.items()}).text = words or None


def rate_by_size(bodies: Mapping[str, Any]) -> Xml.Element:
    """Of a file of bench.bodies; where a size was measured several ways, the first, the plain one."""
    rows: dict[float, Mapping[str, float]] = {}
    for row in bodies['table'].values():
        rows.setdefault(row['size'], row)
    ordered = [rows[size] for size in sorted(rows)]
    columns = {'mikkoo 4, PgQ to confirm': 'MB/s', 'bare socket': 'bare MB/s'}
    lines = {name: [(row['size'], row[column]) for row in ordered] for name, column in columns.items()}
    speeds = [speed for points in lines.values() for _, speed in points]
    return chart('Rate by body size', decades('bytes in a body', rows), decades('MB/s', speeds), lines, True)


def latency(figures: Mapping[str, Any]) -> Xml.Element:
    """Of a file of bench.latency."""
    lines = {
        name: [(value, 100 * at / (len(ordered) - 1)) for at, value in enumerate(ordered)]
        for name, ordered in sorted(figures['distributions, ms'].items())
    }
    across = decades('milliseconds', (value for points in lines.values() for value, _ in points))
    up = Axis('% arrived', 0, 100, range(0, 101, 20), logarithmic=False)
    return chart('Latency', across, up, lines, False)


def main() -> None:
    parser = argparse.ArgumentParser(description='The plots of docs/performance.md.')
    parser.add_argument('figures', type=Path)
    parser.add_argument('folder', type=Path)
    options = parser.parse_args()
    figures = json.loads(options.figures.read_text())
    plots = {'rate-by-size': rate_by_size(figures['bodies']), 'latency': latency(figures['latency'])}
    for name, drawn in plots.items():
        Xml.ElementTree(drawn).write(options.folder / f'{name}.svg', encoding='utf-8', xml_declaration=True)


if __name__ == '__main__':
    main()

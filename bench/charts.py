# SPDX-License-Identifier: Apache-2.0
"""Charts as SVG text, the same bytes for the same numbers: what write_performance.py draws with."""
import html
import math

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")
WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 36, 52


def _text(x, y, words, anchor="middle", more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{html.escape(words)}</text>'


def _open(title, height):
    return [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'font-family="sans-serif" font-size="11">',
            f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
            _text(LEFT, 20, title, "start", ' font-size="14"')]


def _decades(values):
    low = math.floor(math.log10(min(values)) + 1e-9)
    high = math.ceil(math.log10(max(values)) - 1e-9)
    return low, max(high, low + 1)


def _number(value):
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor and value % factor == 0:
            return f"{value / factor:g}{suffix}"
    return f"{value:,.0f}" if value >= 1 else f"{value:.9f}".rstrip("0")


def line_chart(title, x_name, y_name, curves, x_ticks=None):
    """Curves on logarithmic axes.

    curves: [(name, [(x, y), …], dashed)], all numbers > 0. x_ticks: default the powers of ten.
    """
    points = [p for _, line, _ in curves for p in line]
    y_low, y_high = _decades([y for _, y in points])
    if x_ticks:
        x_low, x_high = math.log10(min(x_ticks)), math.log10(max(x_ticks))
    else:
        x_low, x_high = _decades([x for x, _ in points])
        x_ticks = [10.0**e for e in range(x_low, x_high + 1)]
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def place(x, y):
        return (LEFT + (math.log10(x) - x_low) / (x_high - x_low) * (right - LEFT),
                bottom - (math.log10(y) - y_low) / (y_high - y_low) * (bottom - TOP))

    out = _open(title, HEIGHT)
    for tick in x_ticks:
        x, _ = place(tick, 10.0**y_low)
        out.append(f'<path d="M{x:.1f} {TOP}V{bottom}" stroke="#ddd"/>')
        out.append(_text(x, bottom + 16, _number(tick)))
    for exponent in range(y_low, y_high + 1):
        _, y = place(10.0**x_low, 10.0**exponent)
        out.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#ddd"/>')
        out.append(_text(LEFT - 6, y + 4, _number(10.0**exponent), "end"))
    out.append(_text((LEFT + right) / 2, HEIGHT - 14, x_name))
    out.append(_text(0, 0, y_name, "middle",
                     f' transform="translate(18 {(TOP + bottom) / 2:.1f}) rotate(-90)"'))
    for index, (name, line, dashed) in enumerate(curves):
        colour = COLOURS[index % len(COLOURS)]
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        path = "L".join("{:.1f} {:.1f}".format(*place(x, y)) for x, y in line)
        out.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>')
        if not dashed:
            out += ['<circle cx="{:.1f}" cy="{:.1f}" r="2.6" fill="{}"/>'.format(*place(x, y), colour)
                    for x, y in line]
        y = TOP + 14 + 18 * index
        out.append(f'<path d="M{right + 10} {y - 4}h18" stroke="{colour}" stroke-width="2"{dash}/>')
        out.append(_text(right + 33, y, name, "start"))
    return "\n".join(out + ["</svg>"]) + "\n"


def bar_chart(title, x_name, bars):
    """Horizontal bars on a logarithmic axis that begins at 1. bars: [(name, value, colour index)]."""
    left, right, step = 365, WIDTH - 50, 18
    height = TOP + step * len(bars) + BOTTOM
    bottom = height - BOTTOM
    decades = max(1, math.ceil(math.log10(max(value for _, value, _ in bars))))
    out = _open(title, height)
    for exponent in range(decades + 1):
        x = left + exponent / decades * (right - left)
        out.append(f'<path d="M{x:.1f} {TOP}V{bottom}" stroke="#ddd"/>')
        out.append(_text(x, bottom + 16, _number(10.0**exponent)))
    out.append(_text((left + right) / 2, height - 14, x_name))
    for index, (name, value, colour) in enumerate(bars):
        y = TOP + step * index
        length = max(1.0, math.log10(max(value, 1.0)) / decades * (right - left))
        out.append(_text(left - 8, y + 13, name, "end"))
        out.append(f'<rect x="{left}" y="{y + 3}" width="{length:.1f}" height="{step - 6}" '
                   f'fill="{COLOURS[colour % len(COLOURS)]}"/>')
        out.append(_text(left + length + 5, y + 13, f"{value:.1f}", "start"))
    return "\n".join(out + ["</svg>"]) + "\n"

# SPDX-License-Identifier: Apache-2.0
"""Numbers, tables and paragraphs as the pages of measurements show them."""
import textwrap


def milliseconds(value):
    """As many digits as a measurement deserves."""
    if value is None:
        return ""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3 if value >= 0.1 else 4}f}"


def ratio(value):
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def percent(share, digits=0):
    return f"{100 * share:.{digits}f} %"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def wrapped(text, width=105):
    return textwrap.fill(text, width, break_on_hyphens=False, break_long_words=False)

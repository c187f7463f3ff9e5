#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""check_report.py PAGE: is a report.html whole?

Every table has rows and no cell is empty; every SVG is well-formed XML and says what it shows; every
PNG inside can be unpacked, is as large as it says and not blank; nothing comes from the network; no
number is missing. Says what is wrong and exits with 1.
"""
import base64
import html.parser
import re
import struct
import sys
import xml.etree.ElementTree
import zlib

wrong = []
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tables, self.cells, self.stack, self.cell, self.ids, self.links = [], 0, [], None, set(), []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in VOID:
            self.stack.append(tag)
        self.ids.add(attributes.get("id"))
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            if name in attributes:
                self.links.append(attributes[name])
        if tag == "script":
            wrong.append("there is a script")
        if tag == "table":
            self.tables.append([0, "?"])
        if tag == "tr":
            self.tables[-1][0] += 1
        if tag in ("td", "th", "caption"):
            self.cell = ""

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if not self.stack or self.stack.pop() != tag:
            wrong.append(f"line {self.getpos()[0]}: </{tag}> closes something else")
        if tag == "caption":
            self.tables[-1][1] = self.cell
        if tag in ("td", "th", "caption"):
            self.cells += 1
            text, self.cell = self.cell.strip(), None
            if not text:
                wrong.append(f"line {self.getpos()[0]}: an empty cell in table {self.tables[-1][1]}")
            if re.search(r"\b(nan|inf|null|unknown size)\b", text):
                wrong.append(f"table {self.tables[-1][1]}: a cell says {text}")

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data


def check_png(file):
    if file[:8] != b"\x89PNG\r\n\x1a\n":
        return wrong.append("a picture is no PNG")
    chunks, at = {}, 8
    while at < len(file):
        length, kind = struct.unpack(">I4s", file[at : at + 8])
        content = file[at + 8 : at + 8 + length]
        (crc,) = struct.unpack(">I", file[at + 8 + length : at + 12 + length])
        if crc != zlib.crc32(kind + content):
            wrong.append(f"PNG chunk {kind}: wrong CRC")
        chunks[kind] = content
        at += 12 + length
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    rows = zlib.decompress(chunks[b"IDAT"])
    if len(rows) != height * (width + 1):
        wrong.append(f"a PNG of {width} by {height} has {len(rows)} bytes of pixels")
    if max(rows) == 0:
        wrong.append("a PNG is blank")
    if max(rows) >= len(chunks[b"PLTE"]) // 3:
        wrong.append("a PNG has colours beyond its palette")


def main():
    text = open(sys.argv[1], encoding="utf-8").read()
    page = Page()
    page.feed(text)
    page.close()
    if page.stack:
        wrong.append(f"not closed: {page.stack}")
    wrong.extend(f"table {caption} has no rows" for rows, caption in page.tables if rows < 2)
    for link in page.links:
        if link.startswith("#"):
            if link[1:] not in page.ids:
                wrong.append(f"a link to {link} leads nowhere")
        elif not link.startswith("data:"):
            wrong.append(f"loads or links {link[:80]}")
    style = "".join(re.findall(r"<style>(.*?)</style>", text, re.S))
    if re.search(r"url\(|@import", style):
        wrong.append("the style sheet loads something")
    pictures = re.findall(r"<svg.*?</svg>", text, re.S)
    for svg in pictures:
        try:
            root = xml.etree.ElementTree.fromstring(svg)
            if not (root.find("{*}title") is not None and root.find("{*}title").text):
                wrong.append("an SVG without title")
        except xml.etree.ElementTree.ParseError as error:
            wrong.append(f"an SVG is not well-formed: {error}")
    pngs = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", text)
    for png in pngs:
        check_png(base64.b64decode(png, validate=True))
    if len(pictures) < 8 or len(pngs) < 4 or len(page.tables) < 15:
        wrong.append(f"only {len(pictures)} SVG, {len(pngs)} PNG, {len(page.tables)} tables")
    for line in wrong:
        print(f"{sys.argv[1]}: {line}", file=sys.stderr)
    if not wrong:
        print(
            f"{sys.argv[1]}: {len(text)} bytes, {len(page.tables)} tables with {page.cells} cells, "
            f"{len(pictures)} SVG, {len(pngs)} PNG, all sound"
        )
    return 1 if wrong else 0


sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""check_calls.py ROOT: docs/calls.md has a row for every public call, and none for what does not exist.

Public calls are the functions of include/winnow/*.hpp and *.cuh at namespace scope and the public members
of their classes that return a status or a workspace's size. Rows name them in their first cell, up to a comma: `select_above`,
`reference::select_above`, `latency_table::load`.
"""
import pathlib
import re
import sys

# A declaration begins a line; its type and name may be on the line that follows an attribute.
FREE = re.compile(r"^(?:\[\[nodiscard\]\] |inline |constexpr |WINNOW_HOST_DEVICE )*"
                  r"(?:status|bool|void|int|std::\w+|partition_shape|window_selection|packed_position)"
                  r"[&*]? (\w+)\(", re.MULTILINE)
MEMBER = re.compile(r"^  (?:\[\[nodiscard\]\] )?(?:static )?(?:status (\w+)|std::size_t (\w+_bytes))\(",
                    re.MULTILINE)
CLASS = re.compile(r"^(?:class|struct) (?:\[\[nodiscard\]\] )?(\w+)[^;]*?\{\n(.*?)^\};",
                   re.MULTILINE | re.DOTALL)
NAMESPACE = re.compile(r"^namespace ([\w:]+) \{|^\}  // namespace ([\w:]+)", re.MULTILINE)


def scopes(text):
    """(namespace, text) of each stretch of a header, detail left out."""
    stack, start = [], 0
    for mark in NAMESPACE.finditer(text):
        yield "::".join(stack), text[start:mark.start()]
        stack.append(mark[1]) if mark[1] else stack.pop()
        start = mark.end()


def public_calls(root):
    for header in sorted((root / "include" / "winnow").glob("*.[hc]*")):
        if header.name in ("storage.hpp", "status.hpp"):  # conversions of numbers, and what calls return
            continue
        for scope, text in scopes(header.read_text()):
            if "detail" in scope or not scope.startswith("winnow"):
                continue
            prefix = scope.removeprefix("winnow").removeprefix("::")
            prefix += "::" if prefix else ""
            for name in FREE.findall(CLASS.sub("", text)):
                yield prefix + name
            for owner, body in CLASS.findall(text):
                for names in MEMBER.findall(body.split("\n private:")[0]):
                    yield f"{prefix}{owner}::{''.join(names)}"


def rows(page):
    return re.findall(r"^\| `([\w:]+)(?:`|,)", page.read_text(), re.MULTILINE)


def main():
    root = pathlib.Path(sys.argv[1])
    calls, table = set(public_calls(root)), set(rows(root / "docs" / "calls.md"))
    errors = [f"docs/calls.md has no row for {name}" for name in sorted(calls - table)]
    errors += [f"docs/calls.md has a row for {name}, which no header declares"
               for name in sorted(table - calls)]
    print("\n".join(errors) or f"{len(calls)} public calls, each has a row")
    return 1 if errors or not calls else 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""check_snippets.py ROOT: every C++ and Python block of the documentation is the tested part of a
file, so that no example can rot.

A block is preceded by `<!-- FILE -->`, FILE beside this script, and equals the lines of FILE between
its two marks `// ---` or `# ---`.
"""
import pathlib
import re
import sys

BLOCK = re.compile(r"(?:<!-- (?P<file>\S+) -->\n)?^```(?P<language>cpp|python)\n(?P<code>.*?)^```$",
                   re.MULTILINE | re.DOTALL)
MARK = re.compile(r"^(?://|#) ---\n", re.MULTILINE)


def snippet_of(path):
    parts = MARK.split(path.read_text())
    return parts[1] if len(parts) == 3 else None


def errors_of(page, here):
    text = page.read_text()
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start("code"))
        if block["file"] is None:
            yield f"{page}:{line}: a block without <!-- FILE --> before it"
            continue
        path = here / block["file"]
        if not path.is_file():
            yield f"{page}:{line}: {path} does not exist"
        elif snippet_of(path) != block["code"]:
            yield f"{page}:{line}: differs from {path}"


def main():
    root = pathlib.Path(sys.argv[1])
    pages = [*root.glob("*.md"), *root.glob("docs/**/*.md")]
    errors = [error for page in pages for error in errors_of(page, pathlib.Path(__file__).parent)]
    print("\n".join(errors) or f"{len(pages)} pages, every block is tested")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())

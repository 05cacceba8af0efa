"""How large the classes and functions of the package are: prints a table, and fails where one is larger than it may be.

    python -m tests.support.house

A class may have 300 lines and 12 attributes, those that are listed here somewhat more. Lines of code are those that are
neither empty nor a comment or docstring.
"""

from __future__ import annotations

import ast
import io
import statistics
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[2] / "airflow_provider_air_executor"
LINES, ATTRIBUTES = 300, 12
MEDIAN, NINE_TENTHS = 7, 20  # lines of functions

# How many lines and attributes other classes may have at most, and why. These numbers only ever become smaller.
_TO_BE_CUT = "has more than one task; it is to be cut"
LARGER = {
    "Kill": (300, 13, "what is known of a look at all processes, from one to the next"),
    "AirExecutorSubmitOperator": (356, 22, "each parameter of an operator is an attribute, and is documented"),
    "AirExecutorJobTrigger": (300, 19, "each argument of a trigger is an attribute, for it is serialized"),
}


class Size(NamedTuple):
    """How large a class is."""

    name: str
    lines: int
    methods: int
    attributes: int


def main() -> int:
    """Print the table; the exit code is 1 if something is too large."""
    sizes, functions, code = [], [], 0
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text()
        tree = ast.parse(text)
        found = _lines_of_code(text, tree)
        code += len(found)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                sizes.append(_size(node))
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.append(len(found & set(range(node.body[0].lineno, (node.end_lineno or 0) + 1))))
    functions.sort()
    median, nine_tenths = statistics.median(functions), functions[len(functions) * 9 // 10]
    wrong = list(_wrong(sizes))
    if median > MEDIAN or nine_tenths > NINE_TENTHS:
        wrong.append(f"functions: the median may be {MEDIAN} lines, and nine of ten at most {NINE_TENTHS}")
    print(f"{code} lines of code, {len(sizes)} classes, {len(functions)} functions")
    print(f"functions: median {median:g} lines, nine of ten at most {nine_tenths}, the longest {functions[-1]}")
    print(f"{'class':28} {'lines':>6} {'methods':>8} {'attributes':>11}")
    for size in sorted(sizes, key=lambda size: -size.lines)[:15]:
        print(f"{size.name:28} {size.lines:6} {size.methods:8} {size.attributes:11}")
    for line in wrong:
        print(line, file=sys.stderr)
    return bool(wrong)


def _wrong(sizes: list[Size]) -> Iterator[str]:
    for name in LARGER.keys() - {size.name for size in sizes}:
        yield f"{name}: there is no such class any more"
    for size in sizes:
        lines, attributes, _ = LARGER.get(size.name, (LINES, ATTRIBUTES, ""))
        if size.lines > lines or size.attributes > attributes:
            yield (
                f"{size.name} has {size.lines} lines and {size.attributes} attributes; "
                f"it may have {lines} and {attributes}"
            )


def _size(node: ast.ClassDef) -> Size:
    methods = [item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
    attributes = {
        item.attr
        for method in methods
        for item in ast.walk(method)
        if isinstance(item, ast.Attribute) and isinstance(item.ctx, ast.Store)
        if isinstance(item.value, ast.Name) and item.value.id == "self"
    }
    return Size(node.name, (node.end_lineno or 0) - node.lineno + 1, len(methods), len(attributes))


def _lines_of_code(text: str, tree: ast.Module) -> set[int]:
    lines: set[int] = set()
    nothing = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in nothing:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            lines.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return lines


if __name__ == "__main__":
    sys.exit(main())

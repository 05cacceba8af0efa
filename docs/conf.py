"""How Sphinx builds the pages: ``make docs``. Markdown by MyST, so that they can be read as they are, too."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from airflow_provider_air_executor import __version__

HERE = Path(__file__).resolve().parent

project = "airflow-provider-air-executor"
author = "its contributors"
version = release = __version__
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"Air-Executor {release}"
html_copy_source = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["tables.css"]
myst_heading_anchors = 4  # links as on GitHub: #the-words-of-a-heading
nitpicky = True

_LINK = re.compile(r"(?<!!)\[([^\[\]]+)\]\(((?!https?:|#)[^)\s]+)(?:\s+\"[^\"]*\")?\)")
# The navigation; a page that is not here is listed with the guides.
_GUIDES = "Guides"
_NAVIGATION = {
    "Start": ["quick-start", "install", "concepts"],
    _GUIDES: [
        "jobs",
        "operator",
        "sql",
        "runners",
        "slurm",
        "kubernetes",
        "executor",
        "executor-on-slurm",
        "executor-on-kubernetes",
        "executor-several",
        "ui",
        "command-line",
        "python-client",
        "observability",
        "cleaning-up",
    ],
    "Reference": ["reference/index", "reference/*", "guarantees", "where-it-runs", "troubleshooting"],
    "Background": [
        "comparison",
        "benchmarks",
        "cpu-of-a-task",
        "architecture",
        "decisions/index",
        "decisions/*",
        "changelog",
    ],
}


def _toctrees() -> str:
    """The navigation, for the end of the first page."""
    there = {str(path.relative_to(HERE).with_suffix("")) for path in HERE.rglob("*.md")} - {"index"}
    listed: dict[str, list[str]] = {caption: [] for caption in _NAVIGATION}
    for caption, patterns in _NAVIGATION.items():
        for pattern in patterns:
            prefix = pattern.removesuffix("*")
            found = sorted(page for page in there if page == pattern or (prefix != pattern and page.startswith(prefix)))
            listed[caption] += found
            there.difference_update(found)
    listed[_GUIDES] += sorted(page for page in there if not page.startswith("_build"))
    trees = (
        "\n".join(("```{toctree}", ":hidden:", f":caption: {name}", *pages, "```")) for name, pages in listed.items()
    )
    return "\n\n" + "\n\n".join(trees) + "\n"


def _add_navigation(_app: Any, docname: str, source: list[str]) -> None:
    if docname == "index":
        source[0] += _toctrees()


def _show_changelog(_app: Any, docname: str, source: list[str]) -> None:
    """The page of the changelog is the file above ``docs/``."""
    if docname == "changelog":
        source[0] = re.sub(r"\]\((?!https?:|#)", "](../", (HERE.parent / "CHANGELOG.md").read_text()).replace(
            "](../docs/", "]("
        )


def _leave_links_to_the_repository(_app: Any, docname: str, source: list[str]) -> None:
    """Links to pages and directories above ``docs/`` become plain text; other files there can be downloaded."""

    def plain(found: re.Match[str]) -> str:
        target = Path(os.path.normpath(HERE / Path(docname).parent / found[2].partition("#")[0]))
        is_elsewhere = not target.is_relative_to(HERE) and (target.suffix == ".md" or target.is_dir())
        return found[1] if is_elsewhere else found[0]

    source[0] = _LINK.sub(plain, source[0])


def setup(app: Any) -> None:
    """Called by Sphinx."""
    from pygments.lexers.special import TextLexer  # type: ignore[import-untyped]

    app.add_lexer("mermaid", TextLexer)  # shown as text; nothing is loaded from other hosts
    app.connect("source-read", _show_changelog)
    app.connect("source-read", _leave_links_to_the_repository)
    app.connect("source-read", _add_navigation)

"""The pages as the server sends them: a frame without data, which the scripts in ``static/`` fill from the API."""

from __future__ import annotations

import html
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from fastapi import Response
from fastapi.responses import HTMLResponse

from airflow_provider_air_executor import links

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
STATIC_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_STATIC = files(__package__) / "static"


def show(kind: str, title: str, data: Mapping[str, str] | None = None, *, status_code: int = 200) -> Response:
    """A page.

    :param kind: which of those that ``static/app.js`` knows.
    :param data: what else its script must know to ask the API.
    """
    attributes = "".join(
        f' data-{name}="{html.escape(value)}"'
        for name, value in {"page": kind, "root": links.root_path(), **(data or {})}.items()
    )
    body = f'<main id="app"{attributes}></main><noscript>This page needs JavaScript.</noscript>'
    return HTMLResponse(page(title, body, script=True), status_code, headers=HEADERS)


def page(title: str, body: str, *, script: bool = False) -> str:
    """The markup of a page.

    :param body: markup itself.
    """
    static = html.escape(f"{links.root_path()}{links.URL_PREFIX}/static")
    scripts = "".join(
        f'<script type="module" src="{static}/{name}"></script>' for name in ("theme.js", "app.js") if script
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(title)}</title><link rel="icon" href="{static}/icon.svg">'
        f'<link rel="stylesheet" href="{static}/style.css">{scripts}</head><body>{body}</body></html>'
    )


@cache
def static_files() -> Mapping[str, bytes]:
    """The files that pages load, by their paths below ``static/``."""
    return {
        f"{folder}{entry.name}": entry.read_bytes()
        for folder in ("", "vendor/")
        for entry in (_STATIC / folder if folder else _STATIC).iterdir()
        if entry.is_file() and entry.name.endswith(tuple(STATIC_TYPES))
    }

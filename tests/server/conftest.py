"""A client of a server."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.support.servers import ServerThread


@pytest.fixture
def client(server: ServerThread) -> Iterator[httpx.Client]:
    """A client that may do all."""
    with server.client() as found:
        yield found

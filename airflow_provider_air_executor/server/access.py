"""Who asks, and what he may do.

Whoever can open the Unix socket may do all; on any other listener a token says who asks, and its scope what he may do.
A token of the scope ``submit`` changes only jobs that a token of its name has submitted.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple, cast

from fastapi import Depends, Request

from airflow_provider_air_executor.server.problems import ProblemError
from airflow_provider_air_executor.server.tokens import Scope, Token


def token_of(request: Request) -> Token:
    """Whose request it is; :mod:`.gate` has seen to that."""
    return cast("Token", request.state.token)


class Needed:
    """A dependency of a route: the scope that it needs."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    async def __call__(self, request: Request) -> None:
        """Refuse a token of a smaller scope."""
        token = token_of(request)
        if not token.scope.includes(self.scope):
            detail = f"token {token.name!r} has the scope {token.scope}; this needs {self.scope}"
            raise ProblemError(403, "forbidden", detail)


# For the dependencies of a route, which are asked before its body is looked at.
READ, SUBMIT, ADMIN = (Depends(Needed(scope)) for scope in Scope)


async def _token(request: Request) -> Token:
    return token_of(request)


TokenDep = Annotated[Token, Depends(_token)]


class Asked(NamedTuple):
    """What a request asks for that changes something, for :mod:`.audit`."""

    action: str
    job: str


class Asks:
    """A dependency of a route that changes something: it is written down.

    :param action: what it does, in a word or two.
    """

    def __init__(self, action: str) -> None:
        self.action = action

    async def __call__(self, request: Request) -> None:
        """Keep what is asked for."""
        request.state.asked = Asked(self.action, request.path_params.get("job_name", ""))

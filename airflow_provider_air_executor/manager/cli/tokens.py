"""The commands about the tokens by which clients on other machines are known."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from airflow_provider_air_executor.manager.cli.errors import Commands
from airflow_provider_air_executor.manager.cli.options import (
    Duration,
    here_option,
    json_option,
    open_store,
    print_json,
)

if TYPE_CHECKING:
    from airflow_provider_air_executor.server.tokens import Token


@click.group(cls=Commands)
def token() -> None:
    """Create, list and revoke the tokens of clients on other machines.

    A server takes a change at once. Only hashes of the tokens are kept, in tokens.json of the base path.
    """


@token.command()
@here_option
@click.argument("name")
@click.option(
    "--scope",
    type=click.Choice(("read", "submit", "admin")),
    required=True,
    help="read: look at jobs; submit: also submit jobs, and change its own; admin: also change all, and the manager.",
)
@click.option("--expires", type=Duration(), metavar="TIME", help="After which it is refused, such as 90d (never).")
@click.option("--rotate", is_flag=True, help="Replace the token of this name, which is refused from now on.")
def create(base_path: str | None, name: str, scope: str, expires: timedelta | None, rotate: bool) -> None:
    """Create a token, and print it.

    It is printed once and cannot be read anywhere later. NAME is written into the jobs that are submitted with it, and
    into the audit log.
    """
    from airflow_provider_air_executor.server.tokens import Scope, Tokens

    store = open_store(base_path, must_exist=False)
    store.create_directories()
    click.echo(Tokens(store.base_path).create(name, Scope(scope), expires, rotate=rotate))
    click.echo(
        "keep it where only its user can read it, for example as the password of an Airflow connection; "
        f"withdraw it: air-executor token revoke {name} --base-path {store.base_path}",
        err=True,
    )


@token.command("list")
@here_option
@json_option
def list_tokens(base_path: str | None, as_json: bool) -> None:
    """List the tokens: their names, their scopes, and until when they are valid."""
    from airflow_provider_air_executor.server.tokens import Tokens

    store = open_store(base_path)
    tokens = Tokens(store.base_path).all()
    if as_json:
        print_json([each.as_json() for each in tokens])
    elif not tokens:
        click.echo(f"there is no token for {store.base_path}; create one: air-executor token create NAME --scope read")
    else:
        _show(tokens)


@token.command()
@here_option
@click.argument("name")
def revoke(base_path: str | None, name: str) -> None:
    """Revoke a token: it is refused from now on, also where a client is connected with it."""
    from airflow_provider_air_executor.server.tokens import Tokens

    Tokens(open_store(base_path).base_path).revoke(name)
    click.echo(f"token {name} is revoked")


def _show(tokens: list[Token]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("NAME", "SCOPE", "CREATED", "EXPIRES", "USED", box=None, pad_edge=False)
    for each in tokens:
        fields = each.as_json()
        expires = fields["expires_at"] or "never"
        table.add_row(
            each.name,
            each.scope.value,
            fields["created_at"],
            f"expired {expires}" if each.is_expired() else expires,
            fields["last_used_at"] or "never",
        )
    Console(highlight=False).print(table)

"""The commands `enforcer session add`, `remove` and `load`: set clients' sessions."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import click

from enforcer.cli.app import GlobalOptions, Subject
from enforcer.errors import ConfigError, EnforcerError, Fault

GROUP_KEYS = ("id", "name", "email")


class GroupType(click.ParamType):
    """A group: its name alone, or ``id=…,name=…,email=…`` with one or more of the three."""

    name = "group"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value.startswith(tuple(f"{key}=" for key in GROUP_KEYS)):
            return {"name": value}
        group: dict[str, str] = {}
        for part in value.split(","):
            key, found, text = part.partition("=")
            if not found or key not in GROUP_KEYS or key in group:
                self.fail(f"{value!r}: {part!r} is not one of id=…, name=… and email=…", param, ctx)
            group[key] = text
        return group


class Attribute(click.ParamType):
    """A SAML attribute: ``KEY=VALUE``."""

    name = "attribute"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        key, found, text = value.partition("=")
        if not found or not key:
            self.fail(f"{value!r} is not of the form KEY=VALUE", param, ctx)
        return key, text


def _attributes(pairs: tuple[tuple[str, str], ...]) -> dict[str, str | list[str]]:
    values: dict[str, list[str]] = {}
    for key, text in pairs:
        values.setdefault(key, []).append(text)
    return {key: texts[0] if len(texts) == 1 else texts for key, texts in values.items()}


@click.group("session", cls=Subject)
def command() -> None:
    """Set the identity of clients by adding or removing sessions.

    The daemon does it. Sessions of the watched file (`sessions.file` of the configuration) are changed there:
    a command that names one of their clients is refused, and a session set by command becomes the file's when
    the file names its client.
    """


@command.command("add")
@click.argument("client")
@click.option("--email", help="The user's e-mail address.")
@click.option("--name", help="The user's name.")
@click.option(
    "--group",
    "groups",
    type=GroupType(),
    metavar="NAME",
    multiple=True,
    help="A group's name, or id=ID,name=NAME,email=EMAIL; may be repeated.",
)
@click.option(
    "--saml",
    type=Attribute(),
    metavar="KEY=VALUE",
    multiple=True,
    help="A SAML attribute; repeated with the same key it has several values.",
)
@click.option(
    "--posture", metavar="ID", multiple=True, help="A device posture check passed; may be repeated."
)
@click.option("--vnet", metavar="ID", help="The virtual network's id.")
@click.option("--proxy-endpoint", metavar="NAME", help="The proxy endpoint that the client uses.")
@click.option("--ttl", type=float, metavar="SECONDS", help="End the session after this time.")
@click.option(
    "--expires", metavar="TIME", help="End the session at this time (RFC 3339: 2030-12-31T23:59:59Z)."
)
@click.pass_obj
def add(
    options: GlobalOptions,
    *,
    client: str,
    groups: tuple[dict[str, str], ...],
    saml: tuple[tuple[str, str], ...],
    posture: tuple[str, ...],
    vnet: str | None,
    **single: Any,
) -> None:
    """Give the address CLIENT a session; replaces an existing one.

    \b
    enforcer session add 10.0.1.2 --email ann@corp.example --group staff --ttl 28800
    """
    from enforcer.control import protocol

    session: dict[str, Any] = {"client": client, "vnet_id": vnet, **single}
    session |= {"groups": list(groups), "saml_attributes": _attributes(saml), "device_posture": list(posture)}
    content = {key: value for key, value in session.items() if value is not None and value not in ([], {})}
    if not content.keys() - {"client", "ttl", "expires"}:
        raise click.UsageError(
            "no fact of the client is given: give --email, --group or another one; "
            f"`enforcer session remove {client}` ends a session"
        )
    result = protocol.ask(protocol.daemon_of(options.instance), "session add", session=content)
    click.echo(f"replaced the session of {client}" if result["replaced"] else f"added a session for {client}")


@command.command("remove")
@click.argument("clients", metavar="CLIENT...", nargs=-1, required=True)
@click.pass_context
def remove(ctx: click.Context, clients: tuple[str, ...]) -> None:
    """End the sessions of clients; exit code 1 if one of them has none."""
    from enforcer.control import protocol

    result = protocol.ask(protocol.daemon_of(ctx.obj.instance), "session remove", clients=list(clients))
    removed = result["removed"]
    click.echo(f"removed {removed} session{'' if removed == 1 else 's'}")
    if result["missing"]:
        click.echo(f"no session: {', '.join(result['missing'])}", err=True)
        ctx.exit(1)


@command.command("load")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.pass_obj
def load(options: GlobalOptions, file: Path) -> None:
    """Add or replace the sessions of FILE (- for stdin): JSON Lines, one session a line.

    All or none: none if the file has faults, or if Ctrl-C comes before the first session is in force. Clients
    that FILE does not name keep their sessions.

    \b
    {"client": "10.0.1.2", "email": "ann@corp.example", "groups": [{"name": "staff"}], "ttl": 28800}
    """
    from enforcer.control import protocol
    from enforcer.instance import trust

    instance = options.instance
    socket = protocol.daemon_of(instance)
    name = "standard input" if str(file) == "-" else str(file)
    # A copy: the unit hides /home and /tmp from the daemon, and a file may change while it is read.
    with tempfile.NamedTemporaryFile(dir=instance.directory, prefix="sessions-") as copy:
        try:
            with os.fdopen(0 if str(file) == "-" else trust.open_file(file), "rb") as source:
                shutil.copyfileobj(source, copy)
        except trust.NotRegularError as error:
            expected = "not a regular file; expected a file of JSON Lines"
            raise ConfigError([Fault(name, 0, expected)]) from error
        except OSError as error:
            raise ConfigError([Fault(name, 0, f"cannot be read: {error.strerror}")]) from error
        except KeyboardInterrupt:
            raise EnforcerError("interrupted: nothing has changed") from None
        copy.flush()
        # The copy stays until the daemon has answered.
        result = protocol.ask(socket, "session load", revocable=True, file=copy.name, name=name)
    added = result["sessions"] - result["replaced"]
    click.echo(f"{result['sessions']:,} sessions: {added:,} added, {result['replaced']:,} were there before")

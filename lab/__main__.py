"""``python -m lab up`` builds a lab for interactive use; ``python -m lab down`` removes it."""

from __future__ import annotations

import sys

import click

from enforcer.control.interpreter import PYTHON
from enforcer.errors import EnforcerError
from lab import features
from lab.gateway import LabGateway
from lab.netns import LabError
from lab.services import Services
from lab.topology import CLIENT2, GATEWAY, ORIGIN1, ORIGIN2, PRIVATE, RESOLVER, Lab

prefix_option = click.option(
    "--prefix", default="lab", show_default=True, help="Start of the namespaces' names."
)


@click.group()
def main() -> None:
    """A gateway, two clients' networks, two origins, a resolver and a private network, in namespaces."""


@main.command()
@prefix_option
@click.option("--bare", is_flag=True, help="Do not start the enforcer on the gateway.")
def up(prefix: str, bare: bool) -> None:
    """Build the lab, start its servers and the enforcer, and say how to play in it."""
    if lacking := features.missing():
        raise LabError(f"the lab needs {'; '.join(lacking)}")
    lab = Lab(prefix).up()
    try:
        Services(lab).start()
        gateway = LabGateway(lab)
        if not bare:
            gateway.start()
    except BaseException:
        lab.down()
        raise
    click.echo(guide(lab, gateway))


@main.command()
@prefix_option
def down(prefix: str) -> None:
    """Take the lab away: its processes, namespaces, pins and files."""
    Lab(prefix).down()


def guide(lab: Lab, gateway: LabGateway) -> str:
    """Instructions for a running lab."""
    enforcer = " ".join(gateway.enforcer)
    state = f"runs (pid {gateway.pid})." if gateway.alive else f"is not started:\n  {enforcer} run"
    again = (
        "make lab-down" if lab.prefix == "lab" else f"{' '.join(PYTHON)} -m lab down --prefix {lab.prefix}"
    )
    questions = [
        (f"curl http://{ORIGIN1[4]}/", "policy bank: leaves from 203.0.113.10"),
        (f"curl http://[{ORIGIN1[6]}]/", "the same in IPv6: from 2001:db8:1::/64"),
        (f"curl http://{ORIGIN2[4]}/", "no policy: the nearest dedicated egress"),
        (f"curl -k https://{ORIGIN2[4]}:8443/", "policy shop: the shared address"),
        (f"curl http://{ORIGIN2[4]}:8081/", "policy travel: the fallback, 203.0.113.11"),
        (f"curl http://{ORIGIN2[4]}:8082/", "policy abroad: refused"),
        (f"dig @{RESOLVER[4]} bank.lab", "DNS: the shared address, as the resolver's log shows"),
        (f"ping {ORIGIN1[4]}", "ICMP: the shared address"),
        (f"curl http://{PRIVATE[4]}/", "a private network: the shared address"),
        (f"head -1 < /dev/tcp/{CLIENT2[4]}/9000", "the other inside network: untouched"),
        (f"dig @{GATEWAY[4]} www.lab", "the gateway's own resolver: untouched"),
    ]
    asks = "\n".join(f"  {command:<36} {meaning}" for command, meaning in questions)
    return f"""\
The lab stands. The enforcer on its gateway {state}

Be the client:
  nsenter --net={lab.client.path} bash

and ask, as the client:
{asks}

See what happens:
  {enforcer} status
  {enforcer} flows
  nsenter --net={lab.net.path} tcpdump -ni gw0

Configuration: {gateway.config}    Logs of all servers: {lab.directory}
Take it away:  {again}"""


if __name__ == "__main__":
    try:
        main()
    except EnforcerError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)

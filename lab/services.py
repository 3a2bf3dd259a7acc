"""The servers that the demo, the interactive lab and most tests use, started together.

======== ==========================================================================================
where    what
======== ==========================================================================================
origin1  nginx: http 80 8080 8081 8082, https 443 8443 · HTTP/3: 443 · iperf3: 5201 ·
         reporter: TCP and UDP 9000 and 53, UDP 8081 8082 8443
origin2  the same
private  the same without iperf3
client2  reporter 9000
resolver unbound 53, knows bank.lab, shop.lab, www.lab
gw       unbound 53, asks the resolver · sshd 22
======== ==========================================================================================
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from lab.program import Program, start_all
from lab.servers import Iperf, Nginx, QuicServer, Reporter, Sshd, Unbound
from lab.topology import RESOLVER, Lab

REPORTED = (9000, 53, "udp:8081", "udp:8082", "udp:8443")


class Services:
    """All servers, in dictionaries by role where several are alike; they start in 0.3 s."""

    def __init__(self, lab: Lab):
        namespaces, directory = lab.namespaces, lab.directory
        origins = ("origin1", "origin2", "private")
        self.nginx = {role: Nginx(namespaces[role], directory) for role in origins}
        self.quic = {role: QuicServer(namespaces[role], directory) for role in origins}
        self.reporter = {role: Reporter(namespaces[role], directory, REPORTED) for role in origins}
        self.reporter["client2"] = Reporter(lab.client2, directory)
        self.iperf = {role: Iperf(namespaces[role], directory) for role in ("origin1", "origin2")}
        self.resolver = Unbound(lab.resolver, directory)
        self.gateway_resolver = Unbound(lab.gw, directory, forward=RESOLVER[4])
        self.sshd = Sshd(lab.gw, directory)

    @property
    def programs(self) -> list[Program]:
        return [
            *self.nginx.values(),
            *self.quic.values(),
            *self.reporter.values(),
            *self.iperf.values(),
            self.resolver,
            self.gateway_resolver,
            self.sshd,
        ]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Start them together; LabError names the one that did not come up."""
        start_all(self.programs)
        return self

    def stop(self) -> None:
        for program in self.programs:
            program.stop()

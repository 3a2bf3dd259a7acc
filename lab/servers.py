"""The lab's servers, each as a Program: nginx, unbound, sshd, iperf3, and two of this package.

Their files (configuration, keys, logs) are in the lab's directory and are removed with it.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lab.netns import LabError, Namespace, execute
from lab.program import Program, listening, module
from lab.topology import ORIGIN1, ORIGIN2, RESOLVER

Entry = TypeVar("Entry")

NAMES = {"bank.lab": ORIGIN1, "shop.lab": ORIGIN2, "www.lab": ORIGIN2}


@dataclass(frozen=True)
class Seen:
    """What a server saw of one request; ``address`` is the peer's."""

    protocol: str
    address: str
    peer_port: int
    port: int


def logged(
    log: Callable[[], list[Entry]], act: Callable[[], object], count: int = 1, patience: float = 5.0
) -> list[Entry]:
    """The entries that ``act`` adds to a server's log: waits for ``count``, at most ``patience`` seconds.

    A log may lag behind the answer: the kernel answers echo requests, and nginx logs after it has answered.
    """
    before = len(log())
    act()
    deadline = time.monotonic() + patience
    while len(new := log()[before:]) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    return new


class Reporter(Program):
    """The server of lab.reporter, which answers with the peer's address."""

    def __init__(self, namespace: Namespace, directory: Path, ports: Sequence[int | str] = (9000,)):
        self.log = directory / f"reporter-{namespace.name.rpartition('-')[2]}.log"
        super().__init__(
            namespace,
            module("reporter", str(self.log), *map(str, ports)),
            directory,
            "reporter",
            ready=lambda: "ready" in self.said(),
        )

    def seen(self, protocol: str | None = None) -> list[Seen]:
        """Everything seen so far, in order; of one protocol (tcp, udp, icmp) if given."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        everything = [Seen(**json.loads(line)) for line in lines]
        return [seen for seen in everything if protocol in (None, seen.protocol)]


class QuicServer(Program):
    """The HTTP/3 server of lab.quic, which answers with the peer's address."""

    def __init__(self, namespace: Namespace, directory: Path, port: int = 443):
        certificate, key = make_certificate(directory)
        super().__init__(
            namespace,
            module("quic", str(port), str(certificate), str(key)),
            directory,
            "quic",
            ready=lambda: "ready" in self.said(),
        )


class Nginx(Program):
    """nginx that answers every request with ``<address> <port>``, and an access log of the same."""

    def __init__(
        self,
        namespace: Namespace,
        directory: Path,
        http: Sequence[int] = (80, 8080, 8081, 8082),
        https: Sequence[int] = (443, 8443),
    ):
        home = directory / f"nginx-{namespace.name.rpartition('-')[2]}"
        home.mkdir(exist_ok=True)
        self.log = home / "access.log"
        certificate, key = make_certificate(directory)
        listens = [f"listen {host}:{port};" for port in http for host in ("0.0.0.0", "[::]")]
        listens += [f"listen {host}:{port} ssl;" for port in https for host in ("0.0.0.0", "[::]")]
        lines = "\n    ".join(listens)
        temporary = "\n  ".join(
            f"{kind}_temp_path {home}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (home / "nginx.conf").write_text(
            f"""daemon off;
user root;
worker_processes 1;
pid {home}/pid;
error_log {home}/error.log;
events {{ worker_connections 4096; }}
http {{
  log_format seen '$remote_addr $remote_port $server_port';
  access_log {self.log} seen;
  {temporary}
  server {{
    {lines}
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    default_type text/plain;
    location / {{ return 200 "$remote_addr $remote_port\\n"; }}
  }}
}}
""",
            encoding="utf-8",
        )
        super().__init__(
            namespace,
            ["nginx", "-c", str(home / "nginx.conf"), "-p", str(home), "-e", str(home / "error.log")],
            directory,
            "nginx",
            ready=listening(namespace, *http, *https),
        )

    def seen(self) -> list[Seen]:
        """Every request answered so far, in order."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        fields = [line.split() for line in lines]
        return [Seen("tcp", address, int(peer), int(port)) for address, peer, port in fields]


class Unbound(Program):
    """unbound with a log of queries: it has the lab's names, or forwards to a resolver that has them.

    ``records`` (lines of a zone file) are those of the zone ``example.lab``: chains of CNAMEs, service
    records, answers too large for a datagram, any TTL.
    """

    def __init__(
        self,
        namespace: Namespace,
        directory: Path,
        forward: str | None = None,
        records: Sequence[str] = (),
    ):
        home = directory / f"unbound-{namespace.name.rpartition('-')[2]}"
        home.mkdir(exist_ok=True)
        self.log = home / "log"
        if forward:
            knows = f"forward-zone:\n  name: lab.\n  forward-addr: {forward}\n"
        else:
            local = [
                f'  local-data: "{name}. 60 IN {kind} {addresses[family]}"\n'
                for name, addresses in NAMES.items()
                for family, kind in ((4, "A"), (6, "AAAA"))
            ]
            knows = '  local-zone: "lab." static\n' + "".join(local)
            if records:
                knows += _zone(home / "example.lab.zone", records)
        (home / "unbound.conf").write_text(
            f"""server:
  directory: "{home}"
  chroot: ""
  username: ""
  pidfile: "{home}/pid"
  use-syslog: no
  logfile: "{self.log}"
  log-queries: yes
  verbosity: 1
  num-threads: 1
  module-config: "iterator"
  domain-insecure: "lab."
  interface: 0.0.0.0
  interface: ::0
  interface-automatic: yes
  access-control: 0.0.0.0/0 allow
  access-control: ::0/0 allow
  do-not-query-localhost: no
{knows}remote-control:
  control-enable: no
""",
            encoding="utf-8",
        )
        super().__init__(
            namespace,
            ["unbound", "-d", "-c", str(home / "unbound.conf")],
            directory,
            "unbound",
            ready=listening(namespace, 53),
        )

    def queries(self) -> list[tuple[str, str, str]]:
        """Every query so far, in order: the client's address, the name, the type."""
        text = self.log.read_text(encoding="utf-8") if self.log.exists() else ""
        return re.findall(r"info: (\S+) (\S+)\. (\S+) IN$", text, re.MULTILINE)


def _zone(file: Path, records: Sequence[str]) -> str:
    """Write the zone's file; returns the lines of unbound.conf that serve it."""
    head = [
        "$ORIGIN example.lab.",
        "@ 60 IN SOA ns hostmaster 1 3600 600 86400 60",
        "@ 60 IN NS ns",
        "ns 60 IN A 0.0.0.0",
    ]
    file.write_text("\n".join([*head, *records]) + "\n", encoding="ascii")
    return (
        '  local-zone: "example.lab." transparent\n'
        f'auth-zone:\n  name: "example.lab."\n  zonefile: "{file}"\n'
        "  for-downstream: yes\n  for-upstream: yes\n"
    )


class Sshd(Program):
    """sshd as it runs on any gateway; its output has each connection's address."""

    def __init__(self, namespace: Namespace, directory: Path, port: int = 22):
        key = directory / "ssh_host_key"
        if not key.exists():
            execute(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's own, for privilege separation
        options = {"Port": port, "HostKey": key, "PidFile": "none", "UsePAM": "no", "LogLevel": "VERBOSE"}
        super().__init__(
            namespace,
            ["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null"]
            + [word for name, value in options.items() for word in ("-o", f"{name}={value}")],
            directory,
            "sshd",
            ready=listening(namespace, port),
        )

    def seen(self) -> list[Seen]:
        """Every connection so far, in order."""
        found = re.findall(r"Connection from (\S+) port (\d+) on \S+ port (\d+)", self.said())
        return [Seen("tcp", address, int(peer), int(port)) for address, peer, port in found]


class Iperf(Program):
    """An iperf3 server."""

    def __init__(self, namespace: Namespace, directory: Path, port: int = 5201):
        super().__init__(
            namespace,
            ["iperf3", "-s", "-p", str(port), "--forceflush"],
            directory,
            "iperf3",
            # iperf3 would count a probe's connection as a test: read its output instead.
            ready=lambda: "listening" in self.said(),
            stop_signal=signal.SIGINT,
        )

    def measure(self, client: Namespace, address: str, *options: str, seconds: int = 1) -> dict[str, Any]:
        """Run the client against it and return iperf3's JSON result."""
        done = client.run("iperf3", "-c", address, "-J", "-t", str(seconds), *options, check=False)
        result: dict[str, Any] = json.loads(done.stdout or "{}")
        if done.returncode or "error" in result:
            raise LabError(f"iperf3 to {address}: {result.get('error', done.stderr.strip())}")
        return result


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed certificate for the lab's servers and its key (PEM), made once per lab."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    certificate, key = directory / "server.pem", directory / "server.key"
    if certificate.exists():
        return certificate, key
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lab")])
    now = datetime.datetime.now(datetime.UTC)
    addresses = [*ORIGIN1.values(), *ORIGIN2.values(), *RESOLVER.values()]
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in NAMES]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(secret, hashes.SHA256())
    )
    key.write_bytes(
        secret.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return certificate, key

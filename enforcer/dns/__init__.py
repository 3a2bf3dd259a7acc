"""Names of addresses, learnt from the DNS answers that clients get.

What cannot be seen cannot be learnt: DNS over TLS, HTTPS and QUIC, DNS on other ports than 53, names that a
client knows from a file or a cache older than the enforcer. Such connections have no host name.
"""

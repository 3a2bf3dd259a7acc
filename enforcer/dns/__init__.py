"""Names of addresses, learnt from the DNS answers that clients get.

What cannot be seen cannot be learnt: DNS over TLS, HTTPS and QUIC, DNS on other ports than 53, a resolver
that clients reach without this gateway, names that a client knows from a file or from a cache older than the
enforcer. A connection to such a name has no host, unless somebody else's question has told of its address.
"""

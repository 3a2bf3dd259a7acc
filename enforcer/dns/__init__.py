"""DNS: learns the names of addresses from the answers that clients receive.

Not visible, so never learnt: DNS over TLS, HTTPS and QUIC, DNS on other ports than 53, resolvers that clients
reach by another route, and names from a client's hosts file or from a cache older than the enforcer. A
connection to such a name has no host, unless the answer for another client named its address.
"""

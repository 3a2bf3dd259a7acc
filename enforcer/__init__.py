"""Dedicated egress IPs on a Linux gateway, enforced in the kernel's path."""

__version__ = "0.1.0"

#!/opt/enforcer/bin/python
"""Prints the gateway's configuration: that of the lab, with the one inside interface that there is here."""

from __future__ import annotations

from lab.configuration import document, dump

print(dump(document(interfaces={"inside": ["in0"], "outside": ["out0"]})), end="")

"""Imported policies as YAML, the way that configuration files here are written."""

from __future__ import annotations

import re
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, SingleQuotedScalarString

from enforcer.config.cloudflare import Imported, Item, summary

# What no reader of YAML takes for anything but text.
_PLAIN = re.compile(r"(?!(?i:true|false|null|yes|no|on|off|y|n)$)[A-Za-z][\w-]*( [\w-]+)*", re.ASCII)
_ENDLESS = 1 << 30


def render(imported: Imported) -> str:
    """Give the text: `lists` and `policies`, and the egress IPs that are needed as a comment."""
    parts = [f"# From the rules of Cloudflare Gateway: {summary(imported)}."]
    if imported.lists:
        lists = "\n".join(f"  {_scalar(name)}: []" for name in imported.lists)
        what = "# Lists that policies name. Their values are not in the export of rules: fill them in."
        parts.append(f"{what}\nlists:\n{lists}")
    if imported.egress_ips:
        parts.append(
            "# These belong under `egress_ips`, each with a name, its location and both addresses.\n"
            "# egress_ips:\n"
            + "\n".join(
                f"#   - {{name: egress-{number}, location: ?, "
                f'ipv4: {egress.get("ipv4", "?")}, ipv6: "{egress.get("ipv6", "?")}"}}'
                for number, egress in enumerate(imported.egress_ips, 1)
            )
        )
    if imported.needs_geoip:
        parts.append("# geoip: {database: /var/lib/GeoIP/GeoLite2-Country.mmdb}")
    items = "\n\n".join(map(_item, imported.items))
    if imported.policies:
        parts.append(f"policies:\n{items}")
    else:
        parts.append(f"{items}\n\npolicies: []" if items else "policies: []")
    return "\n\n".join(parts) + "\n"


def _item(item: Item) -> str:
    comments = [line for line in (item.description, item.refused and f"Left out: {item.refused}") if line]
    lines = [*(f"# {line}" for line in comments)]
    body = _dump([_policy(item.policy)]).rstrip("\n").split("\n")
    lines += body if item.refused is None else [f"# {line}" for line in body]
    return "\n".join(f"  {line}" for line in lines)


def _policy(policy: dict[str, Any]) -> CommentedMap:
    shown = CommentedMap()
    for key, value in policy.items():
        if key == "enabled" and value is True:
            continue
        if isinstance(value, dict):
            shown[key] = CommentedMap({name: _address(text) for name, text in value.items()})
            shown[key].fa.set_flow_style()
        else:
            shown[key] = _quoted(value) if isinstance(value, str) else value
    return shown


def _address(text: str) -> str:
    return DoubleQuotedScalarString(text) if ":" in text else text


def _quoted(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    # Single quotes fold line breaks, and have no escapes.
    return SingleQuotedScalarString(text) if text.isprintable() else DoubleQuotedScalarString(text)


def _scalar(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else f'"{text}"'


def _dump(value: Any) -> str:
    yaml = YAML()
    yaml.width = _ENDLESS
    stream = StringIO()
    yaml.dump(value, stream)
    return stream.getvalue()

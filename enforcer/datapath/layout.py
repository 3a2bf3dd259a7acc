"""Converts BCC's descriptions of structures into numpy dtypes; C has the only definition of layouts.

BCC describes a map's key or value as nested JSON: ``[name, type]``, ``[name, type, [count]]`` or
``[name, [fields…], "struct_packed"]`` (bcc/table.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np

_SCALARS = {
    "char": "u1",
    "unsigned char": "u1",
    "signed char": "i1",
    "_Bool": "u1",
    "short": "<i2",
    "unsigned short": "<u2",
    "int": "<i4",
    "unsigned int": "<u4",
    "long": "<i8",
    "unsigned long": "<u8",
    "long long": "<i8",
    "unsigned long long": "<u8",
}


def _type(description: Any) -> np.dtype:
    if isinstance(description, str):
        return np.dtype(_SCALARS[description])
    return dtype(description)


def dtype(description: Any) -> np.dtype:
    """The numpy dtype of a BCC description (parsed JSON)."""
    if isinstance(description, str):
        return _type(description)
    fields: list[tuple[Any, ...]] = []
    for field in description[1]:
        name, kind = field[0], _type(field[1])
        if len(field) > 2 and isinstance(field[2], list):
            fields.append((name, kind, tuple(field[2])))
        else:
            fields.append((name, kind))
    return np.dtype(fields)

"""Fixtures that collect log lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


class Lines(logging.Handler):
    """Stores the logged lines and their levels."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self.levels: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())
        self.levels.append(record.levelname)


@pytest.fixture
def lines() -> Iterator[Lines]:
    logger, handler = logging.getLogger("enforcer"), Lines()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def said(lines: Lines) -> list[str]:
    """The logged lines."""
    return lines.said

"""Errors of policy expressions, and how messages quote their text."""

from __future__ import annotations

import re


class ExpressionError(ValueError):
    """Invalid expression. ``column`` counts characters from 1 over all lines of the text."""

    def __init__(self, message: str, column: int):
        super().__init__(f"{message} (column {column})")
        self.message = message
        self.column = column


class ListError(ExpressionError):
    """A valid expression compares its field with a list that has a value of another kind."""

    def __init__(self, name: str, index: int, value: str, problem: WrongValueError, column: int):
        super().__init__(
            f"${name} has {cut(value)} as value {index + 1}, which {problem.wrong}; expected {problem.right}",
            column,
        )
        self.name = name
        """The list's name in the configuration."""
        self.index = index
        """The value's index in the list, from 0."""
        self.problem = problem


class WrongValueError(ValueError):
    """A value is not of its field's kind. ``wrong`` says why not, ``right`` what is expected."""

    def __init__(self, wrong: str, right: str):
        super().__init__(f"{wrong}; expected {right}")
        self.wrong = wrong
        self.right = right


def cut(text: str) -> str:
    """Shorten a text to 60 characters on one line, for messages."""
    line = re.sub(r"\s", " ", text[:60])
    return line if len(text) <= 60 else f"{line[:59]}…"

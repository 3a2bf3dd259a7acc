"""What is wrong with the text of a policy."""

from __future__ import annotations

import re


class ExpressionError(ValueError):
    """A text that is no expression. ``column`` counts the text's characters from 1, lines included."""

    def __init__(self, message: str, column: int):
        super().__init__(f"{message} (column {column})")
        self.message = message
        self.column = column


class ListError(ExpressionError):
    """An expression that is right, and compares its field with a list that has a value of another kind."""

    def __init__(self, name: str, index: int, value: str, problem: WrongValueError, column: int):
        super().__init__(
            f"${name} has {cut(value)} as value {index + 1}, which {problem.wrong}; expected {problem.right}",
            column,
        )
        self.name = name
        """The list's, as in the configuration."""
        self.index = index
        """The value's index in the list, from 0."""
        self.problem = problem


class WrongValueError(ValueError):
    """A value that is not of its field's kind: what is wrong with it, and what would be right."""

    def __init__(self, wrong: str, right: str):
        super().__init__(f"{wrong}; expected {right}")
        self.wrong = wrong
        self.right = right


def cut(text: str) -> str:
    """Shorten a text for a message, which is one line."""
    line = re.sub(r"\s", " ", text[:60])
    return line if len(text) <= 60 else f"{line[:59]}…"

"""What a list of policies means, connection by connection: the measure for tables and kernel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from enforcer.policy.evaluation import evaluate, matches
from enforcer.policy.facts import Connection
from enforcer.policy.language import NO_LISTS, Lists, Texts, expression_of
from enforcer.policy.why import why

__all__ = ["Outcome", "Rule", "Step", "decide", "evaluate", "in_order", "matches", "trace"]


class Rule(Texts, Protocol):
    """What policies are here: three texts and more; :class:`enforcer.config.Policy` is one."""

    @property
    def name(self) -> str:
        """Name, for messages."""

    @property
    def precedence(self) -> int:
        """Rank: the lowest decides."""

    @property
    def enabled(self) -> bool:
        """Whether it takes part."""


R = TypeVar("R", bound=Rule)


def in_order(policies: Iterable[R]) -> list[R]:
    """Sort policies as they are tried, the disabled ones included."""
    return sorted(policies, key=lambda policy: policy.precedence)


def decide(policies: Iterable[R], connection: Connection, lists: Lists = NO_LISTS) -> R | None:
    """Find the first enabled policy, in ascending precedence, that matches."""
    for policy in in_order(policies):
        if policy.enabled and matches(expression_of(policy, lists), connection):
            return policy
    return None


Outcome = Literal["matched", "failed", "disabled", "after"]


@dataclass(frozen=True, slots=True)
class Step(Generic[R]):
    """What became of one policy, for the person whose connection it is."""

    policy: R
    outcome: Outcome
    """``after``: it stands behind the one that decided, and was not asked."""
    selector: str = ""
    """The comparison that failed, as it is written; several of an `or`, joined by "or"."""
    reason: str = ""
    """What was seen instead, or why that is unknown."""


def trace(policies: Iterable[R], connection: Connection, lists: Lists = NO_LISTS) -> list[Step[R]]:
    """Say of every policy, in order, what became of it; ExpressionError."""
    steps: list[Step[R]] = []
    decided = False
    for policy in in_order(policies):
        if not policy.enabled:
            steps.append(Step(policy, "disabled"))
        elif decided:
            steps.append(Step(policy, "after"))
        else:
            expression = expression_of(policy, lists)
            decided = matches(expression, connection)
            steps.append(
                Step(policy, "matched") if decided else Step(policy, "failed", *why(expression, connection))
            )
    return steps

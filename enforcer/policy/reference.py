"""The reference evaluator: which policy decides one connection. Tables and kernel must agree with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from enforcer.policy.evaluation import evaluate, matches
from enforcer.policy.facts import Connection
from enforcer.policy.language import NO_LISTS, Lists, PolicyTexts, expression_of
from enforcer.policy.mismatch import explain_mismatch

__all__ = ["Outcome", "PolicyLike", "Step", "decide", "evaluate", "in_order", "matches", "trace"]


class PolicyLike(PolicyTexts, Protocol):
    """A policy as the evaluator reads it; :class:`enforcer.config.Policy` is one."""

    @property
    def name(self) -> str:
        """The policy's name."""

    @property
    def precedence(self) -> int:
        """Rank: the first match in ascending precedence decides."""

    @property
    def enabled(self) -> bool:
        """False: the evaluator skips the policy."""


R = TypeVar("R", bound=PolicyLike)


def in_order(policies: Iterable[R]) -> list[R]:
    """Sort policies by ascending precedence, disabled ones included."""
    return sorted(policies, key=lambda policy: policy.precedence)


def decide(policies: Iterable[R], connection: Connection, lists: Lists = NO_LISTS) -> R | None:
    """Return the first enabled policy, in ascending precedence, that matches."""
    for policy in in_order(policies):
        if policy.enabled and matches(expression_of(policy, lists), connection):
            return policy
    return None


Outcome = Literal["matched", "failed", "disabled", "after"]


@dataclass(frozen=True, slots=True)
class Step(Generic[R]):
    """The outcome of one policy for one connection."""

    policy: R
    outcome: Outcome
    """``after``: an earlier policy has decided, so this one was not evaluated."""
    selector: str = ""
    """The comparison that failed, as written; several of an `or` are joined by "or"."""
    reason: str = ""
    """The actual value, or why it is unknown."""


def trace(policies: Iterable[R], connection: Connection, lists: Lists = NO_LISTS) -> list[Step[R]]:
    """Return the outcome of every policy, in order of precedence; ExpressionError."""
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
            if decided:
                steps.append(Step(policy, "matched"))
            else:
                steps.append(Step(policy, "failed", *explain_mismatch(expression, connection)))
    return steps

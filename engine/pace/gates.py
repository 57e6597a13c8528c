"""What is closed, and how to say to people what decides: *signal value operator threshold*."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.pace.gauges import Gauges
from engine.pace.law import OnFailure, Situation
from engine.pace.quantity import format_comparison, format_value
from engine.pace.signals import Signal


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed gate: its key or its signal's name, and why."""

    key: str
    reason: str
    is_budget: bool = False  # a signal of ours closed it, not the caller


def counts(signal: Signal, situation: Situation) -> bool:
    """False for what measures the foreground while there is none, and for a failing signal that may be ignored."""
    policy = signal.policy
    if policy.foreground and situation.alone:
        return False
    return policy.on_failure is not OnFailure.IGNORE or not signal.trouble(situation.now)


def first_closed(situation: Situation, counting: Sequence[Signal]) -> Closed | None:
    """The first gate that is closed, the caller's before the budgets; every budget gets to see the time."""
    budgets = [(signal.policy.name, signal.gate(situation.now)) for signal in counting]
    gates = [Closed(key, reason) for key, reason in situation.closed.items()]
    gates += [Closed(name, reason, is_budget=True) for name, reason in budgets if reason is not None]
    return gates[0] if gates else None


def ceiling_words(situation: Situation) -> tuple[str, str]:
    """The user's limit as what leads: ``max_rows_per_s 20,000``."""
    words = situation.ceiling_words or f"{situation.ceiling_per_s:,.0f}"
    return situation.ceiling_reason, f"{situation.ceiling_reason} {words}"


def gauge_words(gauges: Gauges, now: float) -> tuple[str, str]:
    """Which gauge leads, and why; two empty texts without one."""
    if gauges.trouble is not None:
        trouble = gauges.trouble
        return trouble.policy.name, trouble.trouble(now) or f"{trouble.policy.name}: no baseline yet"
    leader = gauges.leader
    if leader is None:
        return "", ""
    name, unit, value, target = leader.policy.name, leader.policy.unit, leader.value(now), leader.target
    if leader.misfit or value is None or target is None:
        return name, leader.misfit
    if value > target:
        return name, f"{name} {format_comparison(value, '>', target, unit)}"
    return name, f"{name} {format_value(value, unit)} of {format_value(target, unit)}"

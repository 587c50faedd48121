"""How a plan is refused: the setting, what is wrong with it, and what would do."""

from __future__ import annotations

from boltz_protocol.errors import InvalidPlan


def refuse(setting: str, problem: str, remedy: str) -> InvalidPlan:
    """The error for one setting: "<setting>: <problem>; <what would do>"."""
    return InvalidPlan(f"{setting}: {problem}; {remedy}", setting=setting)

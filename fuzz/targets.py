"""All targets, loaded one by one: a fuzzer need not import, and instrument, what others test."""

from __future__ import annotations

from fuzz.target import Target

PLANTED = "planted-defect"
"""A decoder with a defect, by which the fuzzer shows that it finds one."""


def names() -> list[str]:
    """Return the names of all targets but the planted one."""
    from fuzz import decoders, machines

    return [*decoders.TARGETS, *machines.target_names()]


def load(name: str) -> Target:
    """Return a target.

    :raises LookupError: if there is none of this name.
    """
    if name == PLANTED:
        from fuzz.planted import TARGET

        return TARGET
    from fuzz import machines

    if name in machines.target_names():
        return machines.load(name)
    from fuzz import decoders

    return decoders.TARGETS[name]

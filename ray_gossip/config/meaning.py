"""What a key of the config means beyond the peer that has it. Said once, at the key or for its whole section."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Meaning:
    shared: bool = False
    """All peers of a swarm must have the same value: it decides who meets whom, and about what. The charter holds
    it."""
    changeable: bool = False
    """A run may go on with another value from a state that this one led to, as in a population. Model, swarm and data
    stay as they are."""
    option: bool = False
    """One gives it to a single peer: an option of `ray-gossip peer`."""

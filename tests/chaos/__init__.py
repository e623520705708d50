"""Chaos: faults at random moments, and what has to hold after each of them (docs/chaos.md)."""

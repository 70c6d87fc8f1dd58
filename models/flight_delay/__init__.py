"""Flights from New York: the probability of arriving more than fifteen minutes late."""

from .plugin import plugin

__all__ = ["plugin"]

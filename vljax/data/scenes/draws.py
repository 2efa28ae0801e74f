"""Chance for scenes: streams of random choices, the same on every machine and in every release."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """A stream of random choices that is the same on every machine and in every release.

    SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA
    2014) on Python integers: no start-up cost, which matters where each example has its own stream.
    Two streams of one seed with different numbers never share a state at the same draw, because
    the state is a bijection of the number.
    """

    __slots__ = ("_state",)

    _GOLDEN = 0x9E3779B97F4A7C15
    _WORD = 0xFFFFFFFFFFFFFFFF

    def __init__(self, seed: int, stream: int = 0):
        self._state = seed & self._WORD
        self._state = self.word() + stream * self._GOLDEN & self._WORD
        self._state = self.word()

    def word(self) -> int:
        """The next 64 random bits."""
        self._state = z = (self._state + self._GOLDEN) & self._WORD
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & self._WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & self._WORD
        return z ^ (z >> 31)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A float in [low, high)."""
        return low + (high - low) * ((self.word() >> 11) * 2.0**-53)

    def below(self, n: int) -> int:
        """An integer in [0, n)."""
        return (self.word() >> 11) * n >> 53

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.below(len(options))]

    def sample(self, options: Sequence[T], k: int) -> list[T]:
        """`k` different options in random order."""
        pool = list(options)
        for i in range(k):
            j = i + self.below(len(pool) - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:k]

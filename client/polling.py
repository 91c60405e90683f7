"""How long a site waits between two looks for a message: short while one is expected, long when idle."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Polling:
    """A pause that grows with the silence, so that a message waits for a small share of the time before it.

    After a silence of t seconds the pause is `share`·t within `least_s` and `most_s`, less a random part of
    up to `jitter` of it, so that sites do not ask in step. At 5 % a message after ten seconds of silence
    waits for half a second at most, and after five minutes the site is idle.

    Attributes:
        least_s: Pause while a message is expected.
        most_s: Pause of an idle site.
        share: Pause per second of silence.
        jitter: Largest part by which chance shortens a pause.
    """

    least_s: float = 0.2
    most_s: float = 15.0
    share: float = 0.05
    jitter: float = 0.2

    def pause_s(self, quiet_s: float, chance: float) -> float:
        """Seconds until the next look.

        Args:
            quiet_s: Seconds since the last message, or since the start.
            chance: A random number in [0, 1).
        """
        pause = min(max(self.share * quiet_s, self.least_s), self.most_s)
        return pause * (1 - self.jitter * chance)

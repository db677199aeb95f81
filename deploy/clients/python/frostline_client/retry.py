"""When a call that failed is made again."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass

import grpc

from .errors import FrostlineError

_WORTH_A_TRY = 0.005
"""Seconds; with less than this left nothing is tried again."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how fast calls are repeated.

    ``UNAVAILABLE`` (no connection, one that broke, or a server that drains) is tried again until the call's deadline: a
    restart that is shorter than the timeout fails no call. ``RESOURCE_EXHAUSTED`` is tried again where the server says
    after what time (``RetryInfo``). Each wait is the server's, or doubles from `base` up to `most`, and is spread at
    random so that clients do not return together. No call waits beyond its own deadline.

    What a full server refuses is repeated within a budget that all calls of a client share: each such retry takes 1
    from it, each call that succeeds gives `refund` back, up to `budget`. So a server that is full for long is not asked
    a multiple of what it refuses already. `Client.map` needs no budget: it has a bounded number of calls under way.
    """

    attempts: int | None = None
    """Tries in all; 1 for no retry and no wait for a connection; ``None``: as many as fit in the timeout."""
    base: float = 0.05
    """Seconds before the first retry, where the server names no time."""
    most: float = 1.0
    """Longest wait in seconds, where the server names no time."""
    budget: float = 20.0
    """Retries of refused calls that may be made on top of what successes give back."""
    refund: float = 0.1
    """Retries that one success gives back."""

    def __post_init__(self) -> None:
        if self.attempts is not None and self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {self.attempts}")
        if not 0 < self.base <= self.most:
            raise ValueError(f"base must be above 0 and at most {self.most} (most), not {self.base}")


class Budget:
    """The retries that a client may still make. Safe to share between threads."""

    def __init__(self, policy: RetryPolicy):
        self._policy, self._left, self._lock = policy, policy.budget, threading.Lock()

    def forked(self) -> None:
        """In a new process, where a thread that does not exist any more may have held the lock."""
        self._lock = threading.Lock()

    def take(self) -> bool:
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True

    def succeeded(self) -> None:
        with self._lock:
            self._left = min(self._policy.budget, self._left + self._policy.refund)


class Attempts:
    """One call's tries, from its first to its deadline."""

    def __init__(
        self, policy: RetryPolicy, budget: Budget, timeout: float | None, repeatable: bool, patient: bool = False
    ):
        self._policy, self._budget, self._repeatable, self._patient = policy, budget, repeatable, patient
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._made = 0
        self._last: FrostlineError | None = None

    def left(self) -> float | None:
        """Seconds until the deadline, which the next try gets; ``None`` for no end."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def wait_for_ready(self) -> bool:
        """Whether the try waits for a connection: then it has been sent at most once when it fails."""
        return not self._repeatable and self._policy.attempts != 1

    def wait(self, error: FrostlineError) -> float | None:
        """Seconds to wait before the next try; ``None`` if there is none."""
        self._made += 1
        error.attempts = self._made
        delay = self._delay(error)
        if delay is None:
            self._explain(error)
        self._last = error
        return delay

    def _delay(self, error: FrostlineError) -> float | None:
        policy, left, hint = self._policy, self.left(), error.retry_after
        full = error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and hint is not None
        if not self._repeatable or (policy.attempts is not None and self._made >= policy.attempts):
            return None
        if not full and error.code is not grpc.StatusCode.UNAVAILABLE:
            return None
        # Twenty doublings are past any `most`; more would overflow where there is no deadline.
        delay = random.uniform(0.5, 1.0) * min(policy.most, policy.base * 2.0 ** min(self._made - 1, 20))
        if hint is not None:
            delay = max(delay if full else 0.0, hint * random.uniform(1.0, 1.5))
        if left is not None and delay >= left:
            # Before the server's word nothing can succeed; without it, one more try in what is left may.
            if hint is not None or left < _WORTH_A_TRY:
                return None
            delay = left * random.uniform(0.3, 0.7)
        if full and not self._patient and not self._budget.take():
            return None
        return delay

    def _explain(self, error: FrostlineError) -> None:
        """A deadline that passes while one waits for a server says so."""
        last = self._last
        if last is None:
            return
        error.__cause__ = last
        if error.code is grpc.StatusCode.DEADLINE_EXCEEDED and not error.reason:
            error.message = f"{error.message}; {last.attempts} tries before it ended in {last}"

"""When a call that failed is made again."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass

import grpc

from .errors import FrostlineError


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how fast calls are repeated.

    Only what the server surely did not answer and what is worth repeating is: ``UNAVAILABLE`` (no connection, or a
    server that drains), and ``RESOURCE_EXHAUSTED`` where the server says after what time (``RetryInfo``). Each wait is
    the server's, or doubles from `base` up to `most`, and is spread at random so that clients do not return together.
    No call waits beyond its own deadline.

    A budget shared by all calls of a client ends retries when most calls fail: each retry takes 1 from it, each call
    that succeeds gives `refund` back, up to `budget`.
    """

    attempts: int = 4
    """Tries in all; 1 for no retry."""
    base: float = 0.05
    """Seconds before the first retry, where the server names no time."""
    most: float = 2.0
    """Longest wait in seconds, where the server names no time."""
    budget: float = 20.0
    """Retries that may be made on top of what successes give back."""
    refund: float = 0.1
    """Retries that one success gives back."""


class Budget:
    """The retries that a client may still make. Safe to share between threads."""

    def __init__(self, policy: RetryPolicy):
        self._policy, self._left, self._lock = policy, policy.budget, threading.Lock()

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

    def __init__(self, policy: RetryPolicy, budget: Budget, timeout: float | None, repeatable: bool):
        self._policy, self._budget, self._repeatable = policy, budget, repeatable
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._made = 0

    def left(self) -> float | None:
        """Seconds until the deadline, which the next try gets; ``None`` for no end."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def wait(self, error: FrostlineError) -> float | None:
        """Seconds to wait before the next try; ``None`` if there is none."""
        policy = self._policy
        self._made += 1
        hinted = error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.retry_after is not None
        if not self._repeatable or self._made >= policy.attempts:
            return None
        if not hinted and error.code is not grpc.StatusCode.UNAVAILABLE:
            return None
        if error.retry_after is not None:
            delay = error.retry_after * random.uniform(1.0, 1.5)
        else:
            delay = random.uniform(0.5, 1.0) * min(policy.most, policy.base * 2 ** (self._made - 1))
        left = self.left()
        if left is not None and delay >= left:
            return None
        return delay if self._budget.take() else None

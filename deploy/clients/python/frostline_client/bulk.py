"""Many images through one client: in order, a bounded number at once, errors as results."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Union

import grpc

from .errors import FrostlineError
from .extras import need
from .results import Analysis

Progress = Union[bool, Callable[[int, "int | None"], object]]
"""Whether a bar is shown, or what is called with the numbers of images done and in all (``None``: not known)."""

_AHEAD = 2
"""Answers are made ahead of the one that is waited for, up to so many times those under way."""


def check(at_once: int) -> None:
    if not isinstance(at_once, int) or at_once < 1:
        raise ValueError(f"at_once must be a number from 1, not {at_once!r}")


class Bar:
    """Tells how far it is. Safe to share between threads."""

    def __init__(self, wanted: Progress, total: int | None):
        self._lock, self._done, self._total = threading.Lock(), 0, total
        self._call = wanted if callable(wanted) else None
        self._bar: Any = None
        if wanted is True:
            with warnings.catch_warnings():
                # In a notebook without widgets it is a bar of text, which is as well.
                warnings.simplefilter("ignore")
                self._bar = need("tqdm.auto", "a progress bar").tqdm(total=total, unit="image")

    def step(self) -> None:
        with self._lock:
            self._done += 1
            if self._bar is not None:
                self._bar.update()
            if self._call:
                self._call(self._done, self._total)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def failed(error: Exception, source: Any) -> FrostlineError:
    """An image that got no answer, as its result: also where it could not be read at all."""
    if isinstance(error, FrostlineError):
        error.source = source
        return error
    made = FrostlineError(grpc.StatusCode.INVALID_ARGUMENT, f"{type(error).__name__}: {error}", source=source, attempts=0)
    made.__cause__ = error
    return made


def run(
    one: Callable[[Any], Analysis], images: Iterator[Any], total: int | None, at_once: int, progress: Progress
) -> Iterator[Analysis | FrostlineError]:
    """`one` of each image, on `at_once` threads."""
    bar = Bar(progress, total)

    def outcome(image: Any) -> Analysis | FrostlineError:
        try:
            return one(image)
        except (FrostlineError, OSError, TypeError, ValueError) as error:
            return failed(error, image)
        finally:
            bar.step()

    waiting: deque[Future[Analysis | FrostlineError]] = deque()
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="frostline-map")
    try:
        for image in images:
            waiting.append(pool.submit(outcome, image))
            if len(waiting) >= at_once * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # Whoever stops in the middle waits for the calls under way, and no other is begun.
        pool.shutdown(wait=True, cancel_futures=True)
        bar.close()


async def run_async(
    one: Callable[[Any], Awaitable[Analysis]],
    images: Iterator[Any],
    total: int | None,
    at_once: int,
    progress: Progress,
) -> AsyncIterator[Analysis | FrostlineError]:
    """`one` of each image, `at_once` at a time."""
    bar, places = Bar(progress, total), asyncio.Semaphore(at_once)

    async def outcome(image: Any) -> Analysis | FrostlineError:
        async with places:
            try:
                return await one(image)
            except (FrostlineError, OSError, TypeError, ValueError) as error:
                return failed(error, image)
            finally:
                bar.step()

    waiting: deque[asyncio.Task[Analysis | FrostlineError]] = deque()
    try:
        for image in images:
            waiting.append(asyncio.create_task(outcome(image)))
            if len(waiting) >= at_once * _AHEAD:
                yield await waiting.popleft()
        while waiting:
            yield await waiting.popleft()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        bar.close()

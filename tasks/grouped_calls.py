"""Calls that many threads make one by one, passed on in groups: what group commit is to a database.

Owns the grouping: while one call runs, the items of further callers gather, and the next call gets them all.
A caller alone waits for nobody. It does not know what is called.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class GroupedCalls(Generic[Item, Result]):
    """`call` gets at most `max_items` items and returns a result for each, in their order.

    An error of `shared_errors` is raised for every item of the group. After any other error it is called
    again with each item alone, so that an item that cannot be processed does not affect the others; `call`
    must be safe to repeat then.
    """

    def __init__(
        self,
        call: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        shared_errors: tuple[type[BaseException], ...],
        max_items: int = 64,
    ) -> None:
        self._call = call
        self._shared_errors = shared_errors
        self._max_items = max_items
        self._lock = threading.Lock()
        self._waiting: list[_Entry[Item, Result]] = []
        self._is_running = False

    def __call__(self, item: Item) -> Result:
        """The result for this item; raises what `call` raises for it alone."""
        entry = _Entry[Item, Result](item)
        with self._lock:
            self._waiting.append(entry)
            runs_now, self._is_running = not self._is_running, True
        if not runs_now:
            entry.is_next_or_done.wait()
        if not entry.future.done():
            try:
                self._run(self._next_group())
            finally:
                self._wake_next()
        return entry.future.result()

    @property
    def waiting(self) -> list[Item]:
        """The items that the next calls will get."""
        with self._lock:
            return [entry.item for entry in self._waiting]

    def _next_group(self) -> "list[_Entry[Item, Result]]":
        """The items of the next call, of which the first is that of its caller."""
        with self._lock:
            group, self._waiting = self._waiting[: self._max_items], self._waiting[self._max_items :]
        return group

    def _run(self, group: "list[_Entry[Item, Result]]") -> None:
        try:
            results = self._call([entry.item for entry in group])
            if len(results) != len(group):
                raise ValueError(f"{len(results)} results of {len(group)} items")
            for entry, result in zip(group, results, strict=True):
                entry.future.set_result(result)
                entry.is_next_or_done.set()
        except BaseException as error:
            if len(group) > 1 and not isinstance(error, self._shared_errors):
                for entry in group:
                    self._run([entry])
                return
            for entry in group:
                entry.future.set_exception(error)
                entry.is_next_or_done.set()

    def _wake_next(self) -> None:
        """Let the caller that waits longest run the next call."""
        with self._lock:
            self._is_running = bool(self._waiting)
            if self._waiting:
                self._waiting[0].is_next_or_done.set()


@dataclass(frozen=True)
class _Entry(Generic[Item, Result]):
    item: Item
    future: "Future[Result]" = field(default_factory=Future)
    is_next_or_done: threading.Event = field(default_factory=threading.Event)

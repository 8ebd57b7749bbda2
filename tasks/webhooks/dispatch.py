"""Dispatches webhook deliveries that are due: at every turn of the sweeper, and at once when told of one.

Being told saves the wait for the next turn; the turn finds what nobody told. It does not know who tells.
"""

import threading

import structlog

from storage import deliveries
from storage.database import Database
from storage.errors import StorageError
from tasks.broker import Broker
from tasks.dispatch import Dispatcher
from tasks.errors import BrokerDown
from tasks.queues import CPU_QUEUE

log = structlog.get_logger()

GAP_SECONDS = 0.01
"""The time between two runs, so that ends in quick succession share one."""


class DeliveryDispatch:
    """Dispatches due deliveries over one database and one broker; one run at a time."""

    def __init__(
        self,
        db: Database,
        broker: Broker,
        dispatcher: Dispatcher,
        *,
        max_dispatches: int,
        max_per_account: int,
        redispatch_seconds: float,
    ) -> None:
        self._db, self._broker, self._dispatcher = db, broker, dispatcher
        self._max_dispatches = max_dispatches
        self._max_per_account = max_per_account
        self._redispatch_seconds = redispatch_seconds
        self._running = threading.Lock()
        self._told = threading.Event()

    def __call__(self) -> None:
        """Dispatch what is due and fits into the queue. Raises `StorageError` or `BrokerDown`."""
        with self._running:
            # Redispatched by age, unlike jobs: there are few deliveries, and the queue is bounded.
            room = self._max_dispatches - self._broker.depth(CPU_QUEUE)
            if room <= 0:
                return
            dispatched = deliveries.dispatch(
                self._db,
                limit=room,
                max_per_account=self._max_per_account,
                redispatch_seconds=self._redispatch_seconds,
            )
            if not self._dispatcher.dispatch_deliveries(dispatched):
                deliveries.undispatch(self._db, dispatched)

    def tell(self, _payload: str = "") -> None:
        """Say that a delivery may be due; returns at once."""
        self._told.set()

    def run(self, stop: threading.Event) -> None:
        """Dispatch whenever told, until `stop` is set; `tell` once more to wake it then."""
        while True:
            self._told.wait()
            if stop.is_set():
                return
            self._told.clear()
            try:
                self()
            except (StorageError, BrokerDown) as error:
                log.warning("deliveries_not_dispatched", error=str(error))
            except Exception:
                log.exception("deliveries_not_dispatched")
            stop.wait(GAP_SECONDS)

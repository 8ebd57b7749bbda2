"""The sweeper's process, put together. A composition root; what it does is `tasks.sweeper`'s."""

import threading
from pathlib import Path

from settings import Settings
from storage.database import Database
from tasks.app import make_celery
from tasks.broker import Broker
from tasks.dispatch import Dispatcher
from tasks.sweeper import Sweeper, SweepPlan


def run_sweeper(settings: Settings, stop: threading.Event, alive_file: Path | None = None) -> None:
    """Sweep until `stop` is set; `alive_file` is touched after every turn, for a health check to look at."""
    settings.require("database_url", "broker_url")
    tiers = [tier.name for tier in settings.catalogue.tiers]
    db = Database(**settings.database, pool_size=2)
    broker = Broker(**settings.broker)
    plan = SweepPlan(
        sweep_seconds=settings.sweep_seconds,
        redispatch_seconds=settings.redispatch_seconds,
        worker_alive_seconds=settings.worker_alive_seconds,
        bells_per_slot=settings.bells_per_slot,
        webhooks_per_account=settings.webhooks_per_account,
    )

    def after_turn() -> None:
        if alive_file is not None:
            alive_file.touch()

    dispatcher = Dispatcher(make_celery(**settings.broker, tiers=tiers))
    Sweeper(db, broker, dispatcher, tiers, plan).run(stop, after_turn)
    broker.close()
    db.close()

"""The worker process: one device, one engine, and Celery's threads around it. A composition root.

It loads the engine before Celery starts, since Celery swallows what a signal handler raises: a worker
whose engine failed to load must not take a single message. It decides nothing about jobs.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from catalogue.crash_points import reach
from catalogue.lanes import default_slots
from engine.engine import Engine
from engine.errors import EngineStopped, LoadError
from engine.loading.load import LoadedModels
from settings import Settings
from storage.blobs import Blobs
from storage.database import Database
from storage.dispatches import of_claim
from storage.isolation import next_quarantined
from storage.job_views import last_event_before, newest_event
from storage.job_views import taken_away as jobs_taken_away
from storage.jobs import Claim, Lease, WorkerName, claim_next, release_each
from storage.notifications import BULK_DUE, Listener
from storage.paused_tiers import unpaused
from storage.workers import Worker, say_goodbye, write_progress
from tasks.app import make_celery
from tasks.bulk import BulkDemand
from tasks.consumer import Consumer
from tasks.consumer_watchdog import ConsumerWatchdog
from tasks.dispatch import job_message
from tasks.event_cursor import EventCursor
from tasks.generate import Generate, GeneratePlan
from tasks.heartbeat import Heartbeat
from tasks.in_flight import InFlightJobs, ProgressWriter
from tasks.isolation import MAX_WAIT_SECONDS, Isolations, Quarantine
from tasks.job_observers import LOOK_BACK_SECONDS, FlowerObserver, TakenAway
from tasks.learned_profiles import LearnedProfiles
from tasks.loading import load_configured
from tasks.metrics.server import serve_metrics
from tasks.metrics.worker import WorkerMetrics
from tasks.pings import Pings
from tasks.process_end import (
    Recycling,
    Stops,
    create_device_record,
    drain,
    end_process,
    end_stalled,
    end_when_fatal,
    reap_dead_processes,
)
from tasks.profiles import ProfileFolder, WorkerProfiles, worker_profiles
from tasks.queues import queues_of
from tasks.ready import ReadyFile, StartTimes
from tasks.self_test_results import SelfTestFolder, machine_facts
from tasks.task_events import TaskEvents
from tasks.traces.job_spans import JobSpans
from tasks.traces.tracer import Tracer

log = structlog.get_logger()

EXIT_NO_ENGINE = 71
PROGRESS_SECONDS = 1.0
"""The longest that one write of progress may take."""
READY_SHARE = 0.5
"""A worker whose engine ended no step for this share of the watchdog's time is not ready."""
MAX_POOL_SIZE = 20
"""The connections that jobs share; each needs one for milliseconds, a few times."""


@dataclass(frozen=True)
class WorkerOptions:
    """The command-line options of one worker process; slots that are `None` follow its row cap."""

    device: str
    tiers: tuple[str, ...]
    interactive_slots: int | None = None
    bulk_slots: int | None = None
    num_threads: int | None = None
    ready_file: Path | None = None
    test_again: bool = False  # run the self-tests even if results are stored
    metrics_port: int = 0


def run_worker(settings: Settings, options: WorkerOptions, parts: "WorkerParts | None" = None) -> int:
    """Serve until SIGTERM; returns the exit code, which is `EXIT_NO_ENGINE` if the engine does not load."""
    settings.require("database_url", "broker_url")
    settings.require_store()
    parts = parts or WorkerParts()
    times = StartTimes()
    times.took("import")
    if settings.run_dir is not None:
        # In parallel with the loading, which takes longer.
        _start("dead", reap_dead_processes, Database(**settings.database, pool_size=1), settings.run_dir)
    loaded = parts.load(settings, options)
    if loaded is None:
        return EXIT_NO_ENGINE
    times.took("load", of_which=("self_test", loaded.self_test_seconds))
    return _Process(settings, options, loaded, times, parts).run()


def _load(settings: Settings, options: WorkerOptions) -> LoadedModels | None:
    names = {tier.model for tier in settings.catalogue.tiers if tier.name in options.tiers}
    models = [model for model in settings.catalogue.models if model.name in names]
    results = SelfTestFolder(
        settings.profiles_dir / "self-tests", machine_facts(), test_again=options.test_again
    )
    try:
        return load_configured(
            models,
            config=settings.config,
            device=options.device,
            self_test_seconds=settings.self_test_seconds,
            num_threads=options.num_threads,
            results=results,
        )
    except LoadError as error:
        log.error("engine_not_loaded", code=error.code, error=str(error), device=options.device)
        return None
    except Exception:
        log.exception("engine_not_loaded", device=options.device, models=sorted(names))
        return None


@dataclass(frozen=True)
class WorkerParts:
    """The parts that benchmarks and tests replace: how models are loaded, engine and object store."""

    load: Callable[[Settings, WorkerOptions], LoadedModels | None] = _load
    engine: type[Engine] = Engine
    blobs: type[Blobs] = Blobs


class _Process:
    """The parts of one worker process, wired together."""

    def __init__(
        self,
        settings: Settings,
        options: WorkerOptions,
        loaded: LoadedModels,
        times: StartTimes,
        parts: WorkerParts,
    ) -> None:
        self._settings, self._options, self._times, self._parts = settings, options, times, parts
        tiers = [tier for tier in settings.catalogue.tiers if tier.name in options.tiers]
        self._profiles = worker_profiles(ProfileFolder(settings.profiles_dir), tiers, loaded)
        boot_id = os.environ.get("CALOTYPE_BOOT_ID") or str(uuid.uuid4())
        self._record = create_device_record(settings.run_dir, boot_id)
        self._metrics = WorkerMetrics(options.tiers)
        self._tracer = Tracer.at(settings.traces_endpoint, "worker", options.device)
        self._row_limits = self._profiles.engine.capped(loaded.row_limits)
        self._engine = self._make_engine(loaded)
        self._slots = _slots_of(options, self._row_limits)
        self._worker = _describe(options, self._slots, boot_id, self._engine, self._profiles)
        self._db = Database(**settings.database, pool_size=min(sum(self._slots.values()) + 3, MAX_POOL_SIZE))
        self._learned = LearnedProfiles(self._db, self._engine.seen_costs, tiers, loaded, self._profiles)
        self._in_flight = InFlightJobs()
        self._task_events = TaskEvents()
        self._heartbeat_db = Database(
            **settings.database, pool_size=1, transaction_seconds=settings.heartbeat_seconds
        )
        self._heartbeat = self._make_heartbeat()
        self._recycling = Recycling(
            max_jobs=settings.worker_max_jobs,
            max_memory_bytes=settings.worker_max_memory_bytes,
            end=lambda: self._stops.end_itself(),
        )
        self._generate = self._make_generate()
        self._quarantine = Quarantine(
            lambda: next_quarantined(self._db, self._open_tiers()),
            self._generate,
            look_seconds=settings.sweep_seconds,
        )
        self._progress = self._make_progress_writer()
        self._taken_away = self._make_taken_away()
        app = make_celery(**settings.celery)
        pings = Pings(app, options.device, boot_id)
        self._ready_file = ReadyFile(options.ready_file)
        self._consumer = Consumer(
            app,
            options.tiers,
            self._slots,
            pings,
            lambda: self._heartbeat.has_others,
            lambda: self._heartbeat.closed_tiers,
        )
        self._bulk = self._make_bulk_demand()
        self._listener = Listener(**settings.database)
        self._listener.subscribe(BULK_DUE, self._wake_for, catch_up=self._bulk.wake)
        self._metrics.watch_slots(
            self._slots, lambda lane: self._bulk.num_held if lane == "bulk" else self._consumer.num_taken
        )
        self._drain = partial(
            drain,
            self._engine,
            self._heartbeat,
            [self._bulk, self._quarantine],
            self._ready_file,
            settings.drain_seconds,
        )
        self._stops = Stops(self._drain, self._engine.stop, self._in_flight, self._give_back)
        self._watchdog = ConsumerWatchdog(
            pings.send,
            lambda: pings.is_connected,
            watchdog_seconds=settings.watchdog_seconds,
            on_stalled=lambda: end_stalled(self._drain, self._in_flight, settings.lease_seconds),
        )
        self._task_events.listen()
        pings.listen(self._watchdog.received)

    def run(self) -> int:
        """Serve until SIGTERM; returns the exit code."""
        if not self._recycling.can_begin():
            return EXIT_NO_ENGINE
        _start("fatal", self._end_when_fatal)
        _start("profiles", self._publish_profiles)
        _start("recycling", self._recycling.run, self._settings.heartbeat_seconds, threading.Event())
        serve_metrics(self._metrics.registry, self._settings.metrics_host, self._options.metrics_port)
        self._engine.start()
        self._heartbeat.start()
        self._quarantine.start()
        self._progress.start()
        try:
            return self._consumer.run(
                self._worker.id.replace("/", "."),
                self._answer,
                on_ready=self._on_ready,
                on_shutdown=self._on_shutdown,
            )
        finally:
            self._listener.stop()
            self._bulk.stop()
            self._quarantine.leave()
            self._progress.stop()
            self._taken_away.stop()
            self._engine.stop()  # a thread that still waits for an image releases its job
            self._quarantine.stop()
            self._heartbeat.stop()
            say_goodbye(self._heartbeat_db, self._worker.boot_id)
            if self._tracer is not None:
                self._tracer.stop()

    def _answer(self, job_id: str) -> None:
        """The task: run the claim that waits for it, else claim the job of the message."""
        reach("received")
        if not self._bulk.run(job_id):
            self._generate(job_id, takes_quarantined=False)

    def _open_tiers(self) -> list[str]:
        """The tiers of which it may take jobs now."""
        return unpaused(self._options.tiers, self._heartbeat.closed_tiers)

    def _wake_for(self, tier: str) -> None:
        if tier in self._options.tiers:
            self._bulk.wake()

    def _on_ready(self) -> None:
        options, determinism = self._options, self._engine.determinism
        self._times.took("connect")
        log.info(
            "worker_ready",
            device=options.device,
            tiers=options.tiers,
            determinism=determinism,
            start_seconds=self._times.seconds,
            cpu_seconds=round(time.process_time(), 2),
        )
        self._ready_file.begin(
            device=options.device,
            tiers=options.tiers,
            queues=queues_of(options.tiers),
            determinism=determinism,
        )
        _start(
            "readiness",
            self._ready_file.watch,
            self._engine,
            READY_SHARE * self._settings.watchdog_seconds,
            self._settings.heartbeat_seconds,
        )
        self._watchdog.start()
        self._bulk.start()
        self._listener.start()
        self._taken_away.start()

    def _on_shutdown(self) -> None:
        self._watchdog.stop()
        self._stops.signaled()

    def _give_back(self, leases: Sequence[Lease]) -> None:
        # Over a connection of its own, since others may wait for a Postgres that does not answer.
        seconds = self._settings.heartbeat_seconds
        release_each(
            Database(**self._settings.database, pool_size=1, transaction_seconds=seconds),
            leases,
            code=EngineStopped.code,
            detail="its worker ended before it was stored",
            charged=False,
            max_attempts=self._settings.max_attempts,
            backoff_seconds=0,
        )

    def _end_when_fatal(self) -> None:
        record = self._record
        end_when_fatal(
            self._engine,
            self._db,
            self._worker,
            partial(end_process, record),
            on_device=lambda: record.job_ids if record else (),
        )

    def _publish_profiles(self) -> None:
        """Publish the measured profiles as soon as Postgres answers, then whatever is learned later."""
        self._profiles.publish(self._db)
        self._learned.run(self._settings.heartbeat_seconds, threading.Event())  # until the process ends

    def _make_engine(self, loaded: LoadedModels) -> Engine:
        record, profiles = self._record, self._profiles.engine
        engine = self._parts.engine(
            loaded.models,
            self._row_limits,
            determinism=loaded.determinism,
            step_seconds=profiles.step_seconds,
            bulk_slowdown=self._settings.bulk_slowdown,
            bulk_patience_seconds=self._settings.bulk_patience_seconds,
            on_device=record.note if record else lambda _: None,
            on_step=self._metrics.stepped,
        )
        self._metrics.watch_device(
            self._options.device, engine.device_memory_bytes, engine.peak_device_memory_bytes
        )
        self._metrics.watch_generations(engine.generations_by_stage)
        return engine

    def _make_heartbeat(self) -> Heartbeat:
        return Heartbeat(
            self._heartbeat_db,
            self._worker,
            self._in_flight,
            self._engine,
            heartbeat_seconds=self._settings.heartbeat_seconds,
            lease_seconds=self._settings.lease_seconds,
            watchdog_seconds=self._settings.watchdog_seconds,
            end_process=partial(end_process, self._record),
        )

    def _make_generate(self) -> Generate:
        settings, record = self._settings, self._record
        # Shorter than the watchdog's limit: the engine's thread waits for this write.
        wait_seconds = min(MAX_WAIT_SECONDS, settings.watchdog_seconds / 6)
        isolation_db = Database(**settings.database, pool_size=1, transaction_seconds=wait_seconds)
        return Generate(
            db=self._db,
            blobs=self._parts.blobs(**settings.object_store),
            submit=self._engine.submit,
            in_flight=self._in_flight,
            isolations=Isolations(isolation_db, wait_seconds=wait_seconds),
            worker=WorkerName(self._worker.boot_id, self._worker.id),
            tiers=self._options.tiers,
            plan=GeneratePlan(settings.lease_seconds, settings.upload_seconds, settings.max_attempts),
            price=self._profiles.price_of_device(settings.catalogue.prices),
            encoding=record.encoding if record else lambda _: nullcontext(),
            observers=[
                FlowerObserver(self._task_events.tell),
                self._metrics,
                self._recycling,
                *([JobSpans(self._tracer)] if self._tracer else []),
            ],
        )

    def _make_bulk_demand(self) -> BulkDemand:
        worker = WorkerName(self._worker.boot_id, self._worker.id)

        def claim(num_rows: int, after_account: str) -> list[Claim]:
            return claim_next(
                self._db,
                tiers=self._open_tiers(),
                worker=worker,
                lease_seconds=self._settings.lease_seconds,
                limit=num_rows,
                after_account=after_account,
            )

        return BulkDemand(
            claim,
            receive=lambda claim: self._consumer.receive(job_message(of_claim(claim))),
            run_claim=self._generate.run,
            release=self._generate.release,
            num_slots=self._slots["bulk"],
            poll_seconds=self._settings.sweep_seconds,
        )

    def _make_progress_writer(self) -> ProgressWriter:
        db = Database(
            **self._settings.database,
            pool_size=1,
            transaction_seconds=PROGRESS_SECONDS,
            pool_seconds=PROGRESS_SECONDS,
        )
        return ProgressWriter(self._in_flight, partial(write_progress, db))

    def _make_taken_away(self) -> TakenAway:
        tiers = self._options.tiers
        events = EventCursor(
            partial(last_event_before, self._db, LOOK_BACK_SECONDS),
            partial(newest_event, self._db),
            lambda after, limit: jobs_taken_away(self._db, tiers, after=after, limit=limit),
        )
        return TakenAway(events, self._generate.look_up, look_seconds=self._settings.sweep_seconds)


def _slots_of(options: WorkerOptions, row_limits: Mapping[str, Mapping[int, int]]) -> dict[str, int]:
    """The slots of each lane: as configured, or else enough for the largest step batch of its tiers."""
    default = default_slots(max(rows for limits in row_limits.values() for rows in limits.values()))
    return {"interactive": options.interactive_slots or default, "bulk": options.bulk_slots or default}


def _describe(
    options: WorkerOptions, slots: Mapping[str, int], boot_id: str, engine: Engine, profiles: WorkerProfiles
) -> Worker:
    host = socket.gethostname()
    return Worker(
        id=f"{options.device}@{host}/{boot_id[:8]}",
        boot_id=boot_id,
        host=host,
        pid=os.getpid(),
        device=options.device,
        tiers=options.tiers,
        interactive_slots=slots["interactive"],
        bulk_slots=slots["bulk"],
        determinism=engine.determinism,
        fingerprints=profiles.fingerprints,
    )


def _start(name: str, target: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, daemon=True, name=name).start()

"""The worker process: one device, one engine, Celery's threads around it. A composition root.

It loads the engine before Celery starts, since Celery swallows what a signal handler raises: a worker
whose engine failed to load must not take a single message. It decides nothing about jobs.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
from tenacity import Retrying, retry_if_exception_type, wait_random_exponential

from catalogue.catalogue import Model
from catalogue.parts import Part as NamedPart
from engine.adapters.lora_files import LoraSpec
from engine.engine import Engine
from engine.errors import LoadError
from engine.loading.load import LoadedModels, ModelSpec, load_models
from engine.loading.optimization import Optimization
from engine.loading.replaced_components import Part
from engine.loading.scheduler_overrides import SchedulerOverrides
from engine.loading.textual_inversions import TextualInversion
from engine.self_test.kept import SelfTestResults
from settings import Settings
from storage.blobs import Blobs
from storage.database import Database
from storage.errors import Unavailable
from storage.isolation import next_quarantined
from storage.job_views import last_event_before, newest_event
from storage.job_views import taken_away as jobs_taken_away
from storage.jobs import WorkerName
from storage.profiles import publish
from storage.workers import Worker, declare_dead, say_goodbye, write_progress
from tasks.app import make_celery
from tasks.consumer import Consumer
from tasks.consumer_watchdog import EXIT_DEAF, ConsumerWatchdog
from tasks.device_record import DeviceRecord, dead_processes
from tasks.event_cursor import EventCursor
from tasks.generate import Generate, GeneratePlan
from tasks.heartbeat import Heartbeat
from tasks.in_flight import InFlightJobs
from tasks.isolation import MAX_WAIT_SECONDS, Isolations
from tasks.job_observers import FlowerObserver
from tasks.learned_profiles import LearnedProfiles
from tasks.metrics.server import serve_metrics
from tasks.metrics.worker import WorkerMetrics
from tasks.pings import Pings
from tasks.profiles import ProfileFolder, WorkerProfiles, worker_profiles
from tasks.progress import ProgressWriter
from tasks.quarantine import Quarantine
from tasks.queues import queues_of
from tasks.self_test_results import SelfTestFolder, machine_facts
from tasks.start_times import StartTimes
from tasks.taken_away import LOOK_BACK_SECONDS, TakenAway
from tasks.task_events import TaskEvents

log = structlog.get_logger()

EXIT_NO_ENGINE = 71
EXIT_DEVICE_LOST = 72
PROGRESS_SECONDS = 1.0
"""What one write of progress may take."""


@dataclass(frozen=True)
class WorkerOptions:
    """What one worker process is told."""

    device: str
    tiers: tuple[str, ...]
    interactive_slots: int
    bulk_slots: int
    num_threads: int | None = None
    ready_file: Path | None = None
    test_again: bool = False  # whatever was kept of earlier self-tests
    metrics_port: int = 0


def run_worker(settings: Settings, options: WorkerOptions) -> int:
    """Serve until SIGTERM; returns the exit code. Non-zero when the engine cannot be loaded."""
    settings.require("database_url", "broker_url", "s3_endpoint", "s3_access_key", "s3_secret_key")
    times = StartTimes()
    times.took("import")
    if settings.run_dir is not None:
        # Beside the loading, which takes longer.
        threading.Thread(
            target=_take_back_jobs_of_the_dead, args=(settings, settings.run_dir), daemon=True, name="dead"
        ).start()
    loaded = _load(settings, options)
    if loaded is None:
        return EXIT_NO_ENGINE
    times.took("load", of_which=("self_test", loaded.self_test_seconds))
    tiers = [tier for tier in settings.catalogue.tiers if tier.name in options.tiers]
    profiles = worker_profiles(ProfileFolder(settings.profiles_dir), tiers, loaded)
    boot_id = os.environ.get("CALOTYPE_BOOT_ID") or str(uuid.uuid4())
    record = _device_record(settings.run_dir, boot_id)
    metrics = WorkerMetrics(options.tiers)
    engine = Engine(
        loaded.models,
        profiles.engine.capped(loaded.row_limits),
        determinism=loaded.determinism,
        step_seconds=profiles.engine.step_seconds,
        on_device=record.note if record else lambda _: None,
        on_step=metrics.stepped,
    )
    metrics.watch_device(options.device, engine.device_memory_bytes)
    worker = _describe(options, boot_id, engine, profiles)
    db = Database(**settings.database, pool_size=options.interactive_slots + options.bulk_slots + 3)
    heartbeat_db = Database(**settings.database, pool_size=1, transaction_seconds=settings.heartbeat_seconds)
    mark_seconds = min(MAX_WAIT_SECONDS, settings.watchdog_seconds / 6)  # a wait must not look like a hang
    progress_db = Database(
        **settings.database, pool_size=1, transaction_seconds=PROGRESS_SECONDS, pool_seconds=PROGRESS_SECONDS
    )
    isolation_db = Database(**settings.database, pool_size=1, transaction_seconds=mark_seconds)
    app = make_celery(**settings.broker, tiers=[tier.name for tier in settings.catalogue.tiers])
    slots = {"interactive": options.interactive_slots, "bulk": options.bulk_slots}
    pings = Pings(app, options.device, boot_id)
    consumer = Consumer(app, options.tiers, slots, pings)
    metrics.watch_slots(slots, consumer.num_taken)
    task_events = TaskEvents()
    task_events.listen()
    in_flight = InFlightJobs()
    heartbeat = Heartbeat(
        heartbeat_db,
        worker,
        in_flight,
        engine,
        heartbeat_seconds=settings.heartbeat_seconds,
        lease_seconds=settings.lease_seconds,
        watchdog_seconds=settings.watchdog_seconds,
        end_process=partial(_end_process, record),
    )
    generate = Generate(
        db=db,
        blobs=Blobs(**settings.object_store),
        submit=engine.submit,
        in_flight=in_flight,
        isolations=Isolations(isolation_db, wait_seconds=mark_seconds),
        worker=WorkerName(worker.boot_id, worker.id),
        tiers=options.tiers,
        plan=GeneratePlan(settings.lease_seconds, settings.upload_seconds, settings.max_attempts),
        encoding=record.encoding if record else lambda _: nullcontext(),
        observers=[FlowerObserver(task_events.tell), metrics],
    )
    threading.Thread(
        target=end_when_fatal,
        args=(engine, db, worker, partial(_end_process, record)),
        kwargs={"on_device": lambda: record.job_ids if record else ()},
        daemon=True,
        name="fatal",
    ).start()
    quarantine = Quarantine(
        lambda: next_quarantined(db, options.tiers), generate, look_seconds=settings.sweep_seconds
    )
    progress = ProgressWriter(in_flight, partial(write_progress, progress_db))
    taken_away = TakenAway(
        EventCursor(
            partial(last_event_before, db, LOOK_BACK_SECONDS),
            partial(newest_event, db),
            lambda after, limit: jobs_taken_away(db, options.tiers, after=after, limit=limit),
        ),
        generate.look_up,
        look_seconds=settings.sweep_seconds,
    )
    drain = partial(_drain, engine, heartbeat, quarantine, options, settings.drain_seconds)
    watchdog = ConsumerWatchdog(
        pings.send,
        lambda: pings.is_connected,
        watchdog_seconds=settings.watchdog_seconds,
        on_deaf=lambda: _end_deaf(drain, in_flight, settings.lease_seconds),
    )
    pings.listen(watchdog.heard)

    def ready() -> None:
        _announce(options, engine, times)
        watchdog.start()
        taken_away.start()

    def shutting_down() -> None:
        watchdog.stop()
        threading.Thread(target=drain, name="drain", daemon=True).start()

    learned = LearnedProfiles(db, engine.seen_costs, tiers, loaded, profiles)
    threading.Thread(
        target=_publish,
        args=(db, profiles, learned, settings.heartbeat_seconds),
        daemon=True,
        name="profiles",
    ).start()
    serve_metrics(metrics.registry, settings.metrics_host, options.metrics_port)
    engine.start()
    heartbeat.start()
    quarantine.start()
    progress.start()
    try:
        return consumer.run(
            worker.id.replace("/", "."),
            partial(generate, takes_quarantined=False),
            on_ready=ready,
            on_shutdown=shutting_down,
        )
    finally:
        quarantine.leave()
        progress.stop()
        taken_away.stop()
        engine.stop()  # whoever still waits for an image gives its job back
        quarantine.stop()
        heartbeat.stop()
        say_goodbye(heartbeat_db, worker.boot_id)


def _load(settings: Settings, options: WorkerOptions) -> LoadedModels | None:
    names = {tier.model for tier in settings.catalogue.tiers if tier.name in options.tiers}
    models = [model for model in settings.catalogue.models if model.name in names]
    results = SelfTestFolder(
        settings.profiles_dir / "self-tests", machine_facts(), test_again=options.test_again
    )
    try:
        return load_planned(
            settings, models, device=options.device, num_threads=options.num_threads, results=results
        )
    except LoadError as error:
        log.error("engine_not_loaded", code=error.code, error=str(error), device=options.device)
        return None
    except Exception:
        log.exception("engine_not_loaded", device=options.device, models=sorted(names))
        return None


def load_planned(
    settings: Settings,
    models: Sequence[Model],
    *,
    device: str,
    num_threads: int | None = None,
    results: SelfTestResults | None = None,
) -> LoadedModels:
    """Load models as `calotype.toml` describes them; raises what `load_models` raises."""
    return load_models(
        [
            ModelSpec(
                name=model.name,
                path=_model_path(settings, model.path),
                revision=model.revision,
                weight_name=model.weight_name,
                config=_part(settings, model.config),
                vae=_part(settings, model.vae),
                transformer=_part(settings, model.transformer),
                variant=model.variant,
                dtype=model.dtype,
                local_files_only=model.local_files_only,
                tasks=model.tasks,
                controlnet=None if model.controlnet is None else _model_path(settings, model.controlnet),
                controlnet_revision=model.controlnet_revision,
                optimization=Optimization(
                    channels_last=model.channels_last,
                    compile=model.compile,
                    quantization=model.quantization,
                    vae_slicing=model.vae_slicing,
                    vae_tiling=model.vae_tiling,
                    cpu_offload=model.cpu_offload,
                ),
                sizes=tuple((tier.default_width, tier.default_height) for tier in model.tiers),
                schedulers=model.schedulers,
                scheduler=SchedulerOverrides(**model.scheduler.model_dump()),
                default_num_inference_steps=model.default_num_inference_steps,
                max_num_inference_steps=model.max_num_inference_steps,
                min_side=model.min_side,
                max_side=model.max_side,
                side_multiple=model.side_multiple,
                step_cache=model.step_cache,
                pipeline_parameters={parameter.name: parameter.another for parameter in model.parameters},
                pipeline_defaults={parameter.name: parameter.default for parameter in model.parameters},
                embeddings=tuple(
                    TextualInversion(one.word, _model_path(settings, one.path), one.revision, one.weight_name)
                    for one in model.embeddings
                ),
                loras=tuple(
                    LoraSpec(lora.name, _model_path(settings, lora.path), lora.revision, lora.weight_name)
                    for lora in model.loras
                ),
                max_lora_bytes=model.max_lora_bytes,
            )
            for model in models
        ],
        # CUDA_VISIBLE_DEVICES leaves one GPU to this process, and inside it has number 0.
        device="cuda:0" if device.startswith("cuda") else device,
        row_limits={
            model.name: {tier.max_pixels: tier.max_step_batch_rows for tier in model.tiers}
            for model in models
        },
        num_threads=num_threads,
        self_test_seconds=settings.self_test_seconds,
        results=results,
    )


def _model_path(settings: Settings, path: str) -> str:
    beside_config = settings.config.resolve().parent / path
    return str(beside_config) if beside_config.exists() else path


def _part(settings: Settings, part: NamedPart | None) -> Part | None:
    if part is None:
        return None
    return Part(_model_path(settings, part.path), part.revision, part.weight_name)


def _take_back_jobs_of_the_dead(settings: Settings, run_folder: Path) -> None:
    """Of processes that ended on this machine with nobody to tell: their leases need not run out."""
    db = Database(**settings.database, pool_size=1)
    tries = Retrying(
        retry=retry_if_exception_type(Unavailable), wait=wait_random_exponential(multiplier=0.5, max=30)
    )

    def take_back() -> None:
        with dead_processes(run_folder) as dead:
            for process in dead:
                reaped = declare_dead(db, boot_id=process.boot_id, on_device=process.on_device)
                if reaped:
                    log.warning("jobs_of_dead_process_taken_back", boot_id=process.boot_id, count=len(reaped))

    try:
        tries(take_back)
    except Exception:
        log.exception("jobs_of_dead_processes_not_taken_back")
    finally:
        db.close()


def _device_record(run_folder: Path | None, boot_id: str) -> DeviceRecord | None:
    """Without one the worker works all the same; should it die, all of its jobs are suspects."""
    if run_folder is None:
        return None
    try:
        return DeviceRecord(run_folder, boot_id)
    except OSError as error:
        log.warning("no_device_record", folder=str(run_folder), error=str(error))
        return None


def _end_process(record: DeviceRecord | None, code: int) -> None:
    """End by a fault that was noticed: where nothing was on the device, any job may have caused it."""
    if record is not None:
        record.withdraw_if_empty()
    os._exit(code)


def _describe(options: WorkerOptions, boot_id: str, engine: Engine, profiles: WorkerProfiles) -> Worker:
    host = socket.gethostname()
    return Worker(
        id=f"{options.device}@{host}/{boot_id[:8]}",
        boot_id=boot_id,
        host=host,
        pid=os.getpid(),
        device=options.device,
        tiers=options.tiers,
        interactive_slots=options.interactive_slots,
        bulk_slots=options.bulk_slots,
        determinism=engine.determinism,
        fingerprints=profiles.fingerprints,
    )


def _publish(db: Database, profiles: WorkerProfiles, learned: LearnedProfiles, every_seconds: float) -> None:
    """Tell the others what steps cost here as soon as Postgres can be reached, then what is learned of it."""
    for tier, key in profiles.keys.items():
        profile = profiles.found.get(tier)
        if profile is None:
            log.info("profile_not_there", tier=tier, device=key.device_kind, fingerprint=key.fingerprint)
        else:
            log.info("profile_used", tier=tier, max_rows=profile.max_rows, pays=profile.is_worth_batching)
    tries = Retrying(
        retry=retry_if_exception_type(Unavailable), wait=wait_random_exponential(multiplier=0.5, max=30)
    )
    try:
        tries(publish, db, profiles.stored)
    except Exception:  # whatever it was, what is learned later can still be told
        log.exception("profiles_not_published")
    learned.run(every_seconds, threading.Event())  # for as long as the process lives


def _drain(
    engine: Engine, heartbeat: Heartbeat, quarantine: Quarantine, options: WorkerOptions, seconds: float
) -> None:
    """Let what has begun come to its end; what does not in time goes back to its queue, uncharged."""
    quarantine.leave()
    heartbeat.leave()  # from now on it hears no bell, so a job that waits must not be told that it will
    if options.ready_file is not None:
        options.ready_file.unlink(missing_ok=True)
    if not engine.drain(seconds):
        log.warning("drain_took_too_long", seconds=seconds, generations=engine.num_generations)
    engine.stop()


def _end_deaf(drain: Callable[[], None], in_flight: InFlightJobs, write_seconds: float) -> None:
    """No bell is heard in this process any more: end what it holds as a drain does, and the process."""
    try:
        drain()
        if not in_flight.wait_until_empty(write_seconds):
            log.warning("jobs_not_given_back", count=len(in_flight.all()))
    finally:
        os._exit(EXIT_DEAF)  # the main thread may never return


def end_when_fatal(
    engine: Engine,
    db: Database,
    worker: Worker,
    end_process: Callable[[int], object],
    *,
    on_device: Callable[[], Collection[str]] = lambda: (),
) -> None:
    """A device that is lost stays lost in this process: give its jobs up, as a crash would, and end.

    `on_device` gives the jobs that it was lost on; none means that nobody knows.
    """
    engine.fatal.wait()
    log.error("device_lost", device=worker.device, error=str(engine.fatal_error))
    try:
        declare_dead(db, boot_id=worker.boot_id, on_device=on_device() or None)
    finally:
        end_process(EXIT_DEVICE_LOST)


def _announce(options: WorkerOptions, engine: Engine, times: StartTimes) -> None:
    times.took("connect")
    log.info(
        "worker_ready",
        device=options.device,
        tiers=options.tiers,
        determinism=engine.determinism,
        start_seconds=times.seconds,
        cpu_seconds=round(time.process_time(), 2),
    )
    if options.ready_file is None:
        return
    facts = {
        "pid": os.getpid(),
        "device": options.device,
        "tiers": list(options.tiers),
        "queues": queues_of(options.tiers),
        "determinism": engine.determinism,
    }
    unfinished = options.ready_file.with_name(options.ready_file.name + ".tmp")
    unfinished.write_text(json.dumps(facts))
    unfinished.replace(options.ready_file)

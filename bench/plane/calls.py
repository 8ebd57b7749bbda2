"""Calls every function of `storage` that sends a statement, once or more, on the rows of `bench.plane.rows`.

Each runs under the role of the process that calls it. It judges no result.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any

from sqlalchemy import text

from bench.plane.blocks import Watch, watched
from bench.plane.rows import (
    BOOT_IDS,
    NUM_ACCOUNTS,
    NUM_RUNNING,
    RECEIVERS,
    TAGS,
    TIERS,
    Rows,
    account_id,
    job_id,
    lease_token,
)
from catalogue.parameters import Parameters
from catalogue.profile import Profile, PublishedKey, StepCost
from storage import (
    accounts,
    batches,
    counts,
    deliveries,
    delivery_views,
    dispatches,
    due_work,
    erasure,
    files,
    isolation,
    job_views,
    jobs,
    objects,
    open_work,
    paused_tiers,
    possible_crashes,
    profiles,
    queue_facts,
    receivers,
    retries,
    sessions,
    submissions,
    usage,
    workers,
    workloads,
)
from storage.database import Database
from storage.deliveries import AttemptRecord
from storage.errors import DeliveryIsPending
from storage.job_views import StoredImage
from storage.jobs import Finished, Lease, WorkerName
from storage.profiles import TierProfile
from storage.submissions import NewJob

OWNER = "owner"
"""The role of the commands that manage accounts and keys."""
NOT_CALLED = {
    "files.py: read": "it sends the statement of `found`, and reads the store",
    "grants.py": "run by migrations",
    "rights.py": "run by `calotype database`, over the catalogue of Postgres",
    "roles.py": "run by migrations and by `calotype database`",
    "schema_digest.py": "run by `calotype up` before it starts anything, over the catalogue of Postgres",
}
"""Files and functions that no process calls while it serves, and why no measurement needs them."""

Step = tuple[str, Callable[[], object]]


def measure(rows: Rows, databases: Mapping[str, Database]) -> Watch:
    """Call everything, and return what was explained; `databases` are by role, with `OWNER`."""
    with watched() as watch:
        for part in (_accounts, _views, _queue, _life, _deliveries, _files, _batches, _erasure):
            for watch.label, call in part(rows, databases):
                call()
                watch.label = "preparing"
    return watch


def _accounts(rows: Rows, databases: Mapping[str, Database]) -> Iterator[Step]:
    owner, api, sweeper = databases[OWNER], databases["api"], databases["sweeper"]
    account = rows.other_accounts[-1]
    yield "create_account", lambda: accounts.create_account(owner, "another")
    yield "find_account", lambda: accounts.find_account(owner, "bench 3")
    yield "embed_parameters", lambda: accounts.embed_parameters(owner, account, True)
    yield "embeds_parameters", lambda: accounts.embeds_parameters(owner, account)
    yield "webhook_secret", lambda: accounts.webhook_secret(owner, account)
    yield "rotate_webhook_secret", lambda: accounts.rotate_webhook_secret(owner, account, grace_seconds=60)
    key = accounts.create_key(owner, account, "measured")
    yield "create_key", lambda: accounts.create_key(owner, account, "other")
    yield "authenticate", lambda: accounts.authenticate(api, key.plaintext)
    yield "list_keys", lambda: accounts.list_keys(owner, account)
    yield "list_keys of all", lambda: accounts.list_keys(owner)
    session = sessions.begin(api, key.id, seconds=60)
    yield "begin session", lambda: sessions.begin(api, key.id, seconds=60, instead_of="x")
    yield "principal_of session", lambda: sessions.principal_of(api, session)
    yield "end session", lambda: sessions.end(api, session)
    yield "remove_expired sessions", lambda: sessions.remove_expired(sweeper)
    rotated = accounts.rotate_key(owner, key.id, keep_old=False)
    yield "rotate_key", lambda: accounts.rotate_key(owner, rotated.id, keep_old=True)
    yield "revoke_key", lambda: accounts.revoke_key(owner, rotated.id)


def _views(rows: Rows, databases: Mapping[str, Database]) -> Iterator[Step]:
    api, worker, sweeper = databases["api"], databases["worker"], databases["sweeper"]
    account = rows.account
    yield "get", lambda: job_views.get(api, account, job_id(1))
    yield (
        "get without prompts",
        lambda: job_views.get(databases["sender"], account, job_id(1), with_prompts=False),
    )
    last = job_views.list_jobs(api, account, limit=51)[-1]
    done = job_views.list_jobs(api, account, states=["succeeded"], limit=51)[-1]
    filters: list[dict[str, Any]] = [
        {},
        {"before": (last.created_at, last.id)},
        {"before": (done.created_at, done.id)},
        {"states": ["failed"]},
        {"states": ["failed"], "before": (done.created_at, done.id)},
        {"states": ["queued", "running"]},
        {"states": ["succeeded"], "tier": "hd"},
        {"tier": "hd"},
        {"tier": "xl"},
        {"tier": "none such"},
        {"lane": "interactive"},
        {"lane": "bulk", "before": (done.created_at, done.id)},
        {"lane": "interactive", "tier": "hd", "states": ["canceled"]},
        {"tag": TAGS[1]},
        {"tag": TAGS[1], "states": ["failed"], "tier": "hd", "before": (done.created_at, done.id)},
        {"batch_id": rows.batch},
        {"batch_id": rows.batch, "states": ["failed"]},
        {"batch_id": rows.batch, "tier": "hd", "lane": "bulk", "before": (last.created_at, last.id)},
        {"batch_id": rows.batch, "after_line": 0},
        {"ids": [job_id(number) for number in range(1, 51)]},
    ]
    for asked in filters:
        label = f"list_jobs {' '.join(f'{name}={value}' for name, value in asked.items())}"[:80]
        yield label, partial(job_views.list_jobs, api, account, **{"limit": 51, **asked})
    open_batches = [
        rows.batch,
        *(batch for place, batch in enumerate(rows.finished_batches, 1) if not place % NUM_ACCOUNTS),
    ]
    yield "get batch", lambda: batches.get(api, account, rows.batch)
    yield (
        "get batch of sender",
        lambda: batches.get(databases["sender"], account, rows.batch, with_reading=False),
    )
    page = batches.list_batches(api, account, limit=2)
    yield "list_batches", lambda: batches.list_batches(api, account)
    position = (page[0].created_at, page[0].id)
    yield "list_batches before", lambda: batches.list_batches(api, account, before=position)
    yield "jobs_of batch", lambda: list(islice(batches.jobs_of(api, account, rows.batch), 600))
    yield "highest_line of another's", lambda: batches.highest_line(api, account, rows.finished_batches[:9])
    yield "highest_line", lambda: batches.highest_line(api, account, open_batches)
    yield from _usage(rows, api)
    yield "next_jobs", lambda: queue_facts.next_jobs(api, account, open_batches)
    queued = [job_id(rows.num_finished + NUM_RUNNING + place) for place in range(11, rows.num_queued, 97)][
        :50
    ]
    yield "queue_facts", lambda: queue_facts.queue_facts(api, account, queued, alive_seconds=20)
    yield "tries_of", lambda: retries.tries_of(api, account, [job_id(number) for number in range(1, 500)])
    yield "states_of", lambda: job_views.states_of(api, [job_id(number) for number in range(200)])
    yield "outcome_of", lambda: job_views.outcome_of(worker, job_id(3))
    yield "last_event_before", lambda: job_views.last_event_before(worker, 600)
    newest = job_views.newest_event(sweeper)
    yield "newest_event", lambda: job_views.newest_event(sweeper)
    yield "taken_away", lambda: job_views.taken_away(worker, TIERS, after=newest - 200, limit=100)
    yield "bad_ends", lambda: job_views.bad_ends(sweeper, after=newest - 500, limit=100)
    stored = [(f"x/{number}", account, job_id(number), 1) for number in range(1, 100)]
    yield "orphans_among", lambda: objects.orphans_among(sweeper, stored)


def _usage(rows: Rows, api: Database) -> Iterator[Step]:
    account = rows.other_accounts[0]  # the rows of `rows.account` are most of all
    today = datetime.now(UTC).date()
    asked = usage.UsageFilter(today - timedelta(days=29), today + timedelta(days=1))
    of_batch = replace(asked, batch_id=rows.finished_batches[0])
    calls: list[tuple[tuple[str, ...], usage.UsageFilter]] = [
        (("day",), asked),
        (("key_id", "tier"), asked),
        (("batch_id",), of_batch),
        (("day", "tag"), replace(asked, tag=TAGS[1])),
        (usage.DIMENSIONS, asked),
    ]
    more: dict[str, Any] = {"currency": "USD", "limit": 51}
    for by, which in calls:
        yield f"usage by {' '.join(by)}", partial(usage.usage, api, account, by, which, **more)
    page, _ = usage.usage(api, account, usage.DIMENSIONS, asked, **more)
    last = [str(value) for value in page[-1].dimensions.values()]
    yield (
        "usage after a page",
        partial(usage.usage, api, account, usage.DIMENSIONS, asked, after=last, **more),
    )


def _queue(rows: Rows, databases: Mapping[str, Database]) -> Iterator[Step]:
    api, sweeper = databases["api"], databases["sweeper"]
    first = rows.num_finished + NUM_RUNNING
    yield "waiting", lambda: dispatches.waiting(api)
    yield "open_work", lambda: open_work.open_work(api)
    yield "device_profiles", lambda: open_work.device_profiles(api, alive_seconds=20)
    yield "device_profiles, none live", lambda: open_work.device_profiles(api, alive_seconds=0)
    yield "oldest_queued", lambda: queue_facts.oldest_queued(sweeper)
    yield "workload", lambda: workloads.workload(api, alive_seconds=20)
    yield "live_workers", lambda: workers.live_workers(api, 20)
    yield "num_live_workers", lambda: workers.num_live_workers(api, 20)
    owner = databases[OWNER]
    live = workers.live_workers(api, 20)
    ids, boot_ids = [worker.id for worker in live[:1]], [worker.boot_id for worker in live]
    yield "num_running", lambda: workers.num_running(owner, boot_ids)
    yield "ask_to_drain", lambda: workers.ask_to_drain(owner, ids)
    yield "take_jobs_again", lambda: workers.take_jobs_again(owner, ids)
    yield "pause", lambda: paused_tiers.pause(owner, ["another"])
    yield "paused_tiers", lambda: paused_tiers.paused_tiers(api)
    yield "resume", lambda: paused_tiers.resume(owner, ["another"])
    for lane in ("interactive", "bulk"):
        yield (
            f"feed {lane}",
            partial(dispatches.feed, sweeper, "sd", lane, 100, redispatch_seconds=15),
        )
        yield (
            f"feed {lane}, behind an account",
            partial(
                dispatches.feed, sweeper, "sd", lane, 5, redispatch_seconds=15, after_account=account_id(7)
            ),
        )
        yield (
            f"feed {lane}, nothing",
            partial(dispatches.feed, sweeper, "none", lane, 100, redispatch_seconds=15),
        )
    for head in (first + rows.num_queued // 3, None):
        yield (
            f"redispatch_lost {'behind a head' if head else 'of an empty queue'}",
            partial(
                dispatches.redispatch_lost,
                sweeper,
                "sd",
                "interactive",
                older_than=head,
                limit=50,
                redispatch_seconds=15,
            ),
        )
    dispatched = job_id(first + 10 * 7)
    yield "of_new_job", lambda: dispatches.of_new_job(api, dispatched, account_id=rows.account)
    yield "undispatch", lambda: dispatches.undispatch(sweeper, dispatched)
    yield "expire", lambda: jobs.expire(sweeper)
    yield "expire, nothing", lambda: jobs.expire(sweeper)
    is_due = partial(due_work.due_work, sweeper, TIERS, webhook_keep_seconds=86_400, silent_seconds=600)
    yield "due_work", is_due
    yield "undispatch_bulk", lambda: dispatches.undispatch_bulk(sweeper, "sd")
    yield "forget_all", lambda: dispatches.forget_all(sweeper)
    _vacuum(databases)
    yield "forget_all, nothing", lambda: dispatches.forget_all(sweeper)
    yield "due_work after forget_all", is_due
    yield (
        "feed after forget_all",
        partial(dispatches.feed, sweeper, "sd", "interactive", 40, redispatch_seconds=15),
    )
    yield "fold", lambda: counts.fold(sweeper)


def _life(rows: Rows, databases: Mapping[str, Database]) -> Iterator[Step]:
    owner, api, worker, sweeper = (databases[role] for role in (OWNER, "api", "worker", "sweeper"))
    account, name = rows.account, WorkerName("boot-new", "cpu:0@bench")
    made: list[str] = []

    def create(**changes: Any) -> None:
        made.append(submissions.create(api, _new(account, **changes), redispatch_seconds=15)[0].id)

    for number in range(12):
        yield "create", partial(create, webhook_url=f"https://{RECEIVERS[number]}/")
    file = f"file_{3:064x}"
    yield "create with a file", lambda: create(image=(file,))
    for _ in range(2):
        yield "create once", lambda: create(idempotency_key="key", request_hash="x")
    yield "create bulk", lambda: create(lane="bulk")
    yield "made_before", lambda: submissions.made_before(api, account, "key", "x")
    held: list[Lease] = []
    lease: dict[str, Any] = {"tiers": TIERS, "worker": name, "lease_seconds": 30}

    def claim(call: Callable[..., Any], *given: Any, **more: Any) -> None:
        claimed = call(worker, *given, **lease, **more)
        found = claimed.values() if isinstance(claimed, dict) else claimed
        held.extend(one.lease for one in (found if isinstance(claimed, (dict, list)) else [claimed]))

    yield "claim", lambda: claim(jobs.claim, made[0])
    yield "claim_each", lambda: claim(jobs.claim_each, made[1:9])
    yield "claim_next", lambda: claim(jobs.claim_next, limit=8)
    yield "claim_next behind", lambda: claim(jobs.claim_next, limit=8, after_account=account_id(7))
    yield "claim_next of no tier", lambda: jobs.claim_next(worker, **{**lease, "tiers": ["none"]}, limit=8)
    described = workers.Worker("cpu:0@bench", "boot-new", "host", 1, "cpu:0", TIERS, 8, 8, "exact")
    yield (
        "heartbeat",
        lambda: workers.heartbeat(worker, described, [(one, 0.5) for one in held], lease_seconds=30),
    )
    yield "write_progress", lambda: workers.write_progress(worker, [(one, 0.7) for one in held])
    image = StoredImage(0, 1, "acc/x/1", "x" * 64, 1, 512, 512)
    yield "finish", lambda: jobs.finish(worker, held[0], stored=[image], warnings=[], timings={})

    yield "is_finished", lambda: jobs.is_finished(worker, held[0])

    def finish_each() -> None:
        images = [StoredImage(0, 1, f"acc/x/each-{place}", "x" * 64, 1, 1, 1) for place in range(6)]
        ended = [Finished(one, [image], [], {}, False) for one, image in zip(held[9:15], images, strict=True)]
        jobs.finish_each(worker, ended)

    yield "finish_each", finish_each
    yield "fail", lambda: jobs.fail(worker, held[2], code="nan", detail="x", retryable=False)
    retry: dict[str, Any] = {
        "code": "x",
        "detail": "x",
        "charged": True,
        "max_attempts": 3,
        "backoff_seconds": 5.0,
    }
    yield "release", lambda: jobs.release(worker, held[3], **retry)
    yield "release_each", lambda: jobs.release_each(worker, held[5:8], **{**retry, "charged": False})
    yield "cancel while queued", lambda: jobs.cancel(api, account, made[-1])
    yield "cancel while running", lambda: jobs.cancel(api, account, held[4].job_id)
    yield "next_quarantined", lambda: isolation.next_quarantined(worker, TIERS)
    quarantined = isolation.next_quarantined(worker, TIERS)
    yield "claim quarantined", lambda: claim(jobs.claim, quarantined, takes_quarantined=True)
    yield "set_isolated", lambda: isolation.set_isolated(worker, held[-1])
    yield "clear_isolated", lambda: isolation.clear_isolated(worker, held[-1], progress=0.9)
    running = [Lease(job_id(rows.num_finished + place), 1, lease_token(place)) for place in range(8)]
    yield (
        "heartbeat of old leases",
        lambda: workers.heartbeat(worker, described, [(one, 0.5) for one in running], lease_seconds=30),
    )
    yield "reap, nothing", lambda: jobs.reap(sweeper)
    late = "UPDATE jobs SET lease_expires_at = now() - interval '1 s' WHERE lease_boot_id = :boot_id"
    with owner.transaction() as connection:
        connection.execute(text(late), {"boot_id": BOOT_IDS[1]})
    yield "reap", lambda: jobs.reap(sweeper)
    on_device = [running[0].job_id]
    yield "settle_silent", lambda: possible_crashes.settle_silent(sweeper, silent_seconds=0)
    yield "declare_dead", lambda: workers.declare_dead(worker, boot_id=BOOT_IDS[0], on_device=on_device)
    yield "say_goodbye", lambda: workers.say_goodbye(worker, "boot-new")
    yield "publish profiles", lambda: profiles.publish(worker, [_profile()])
    learned = _profile(learned_max_rows=4)._replace(tier="hd")
    for _ in range(2):
        yield "learn profiles", lambda: profiles.learn(worker, learned)
    yield "fold", lambda: counts.fold(sweeper)


def _deliveries(rows: Rows, databases: Mapping[str, Database]) -> Iterator[Step]:
    api, sender, sweeper = databases["api"], databases["sender"], databases["sweeper"]
    account = rows.account
    yield "num_pending", lambda: delivery_views.num_pending(api)
    yield "seconds_late", lambda: delivery_views.seconds_late(api)
    page = delivery_views.list_deliveries(api, account, limit=51)
    filters: list[dict[str, Any]] = [
        {},
        {"states": ["failed"]},
        {"before": (page[-1].created_at, page[-1].id)},
        {"states": ["failed", "pending"], "before": (page[-1].created_at, page[-1].id)},
        {"job_id": page[0].job_id},
        {"batch_id": rows.batch, "states": ["failed"]},
    ]
    for asked in filters:
        label = f"list_deliveries {' '.join(asked)}"
        yield (
            label,
            partial(delivery_views.list_deliveries, api, account, **{"limit": 51, **asked}),
        )
    yield "get delivery", lambda: delivery_views.get(api, account, page[0].id)
    sent: dict[str, Any] = {"limit": 100, "max_per_account": 4, "redispatch_seconds": 15.0}
    yield "dispatch deliveries", lambda: deliveries.dispatch(sweeper, **sent)
    yield "undispatch deliveries", lambda: deliveries.undispatch(sweeper, [page[0].id])
    claimed: list[Any] = []
    for _ in range(4):
        yield (
            "claim delivery",
            lambda: claimed.append(deliveries.claim(sender, max_per_account=40, lease_seconds=30)),
        )
    yield (
        "claim delivery by its id",
        lambda: deliveries.claim_this(sender, page[1].id, max_per_account=40, lease_seconds=30),
    )
    yield (
        "record success",
        lambda: deliveries.record(sender, claimed[0], AttemptRecord(9, 200), retry_seconds=None),
    )
    failed = AttemptRecord(9, 500, "http", "x")
    yield "record failure", lambda: deliveries.record(sender, claimed[1], failed, retry_seconds=5)
    yield "record last failure", lambda: deliveries.record(sender, claimed[2], failed, retry_seconds=None)
    yield "replay delivery", lambda: deliveries.replay(api, claimed[2].account_id, claimed[2].id)
    yield "replay delivery again", lambda: _replay_again(api, claimed[2])
    yield "hold", lambda: receivers.hold(sender, account)
    yield "wake", lambda: receivers.wake(sweeper)
    yield "release receivers", lambda: receivers.release(sweeper)
    yield "fail_held", lambda: receivers.fail_held(sweeper, keep_seconds=0)
    _vacuum(databases)
    yield "forget receivers", lambda: receivers.forget(sweeper, after_seconds=0)
    found = receivers.list_receivers(api, account)
    yield "list_receivers", lambda: receivers.list_receivers(api, account)
    yield "num_receivers", lambda: receivers.num_receivers(api, "paused")
    if found:
        yield "resume receiver", lambda: receivers.resume(api, account, found[0].id)


def _files(rows: Rows, databases: Mapping[str, Database]) -> Iterator[Step]:
    api, sweeper = databases["api"], databases["sweeper"]
    account, data = rows.account, b"bytes"
    new = files.NewFile(account, files.id_of(data), "image/png", 5, files.new_key(account, "file_x"))
    yield "begin_upload", lambda: files.begin_upload(api, new, keep_seconds=60)
    declared = files.begin_upload(api, new, keep_seconds=60)
    yield "get_declared", lambda: files.get_declared(api, account, new.id)
    yield "complete", lambda: files.complete(api, declared, width=1, height=1, keep_seconds=60)
    there = files.get(api, account, new.id)
    yield "record", lambda: files.record(api, replace(new, width=1, height=1), keep_seconds=60)
    yield "keep", lambda: files.keep(api, account, new.id, keep_seconds=60)
    yield "move", lambda: files.move(api, there, files.new_key(account, "file_y"))
    yield "get file", lambda: files.get(api, account, new.id)
    yield "object_keys", lambda: files.object_keys(api, account, [f"file_{n:064x}" for n in range(20)])
    page = files.list_files(api, account, limit=50)
    yield "list_files", lambda: files.list_files(api, account, limit=50)
    position = (page[-1].created_at, page[-1].id)
    yield "list_files before", lambda: files.list_files(api, account, limit=50, before=position)
    yield "delete file", lambda: files.delete(api, account, f"file_{6:064x}")
    yield "expire files", lambda: files.expire(sweeper)
    yield "deleted_keys", lambda: files.deleted_keys(sweeper)
    for key in files.deleted_keys(sweeper)[:2]:
        yield "forget file", partial(files.forget, sweeper, key)
    used = f"acc/files/file_{6:064x}"
    yield "forget a file that was used", lambda: files.forget(sweeper, used)
    stored = [(f"x/{number}", account) for number in range(100)]
    yield "orphaned_files", lambda: files.orphaned_files(sweeper, stored)


def _batches(rows: Rows, databases: Mapping[str, Database]) -> Iterator[Step]:
    api, sweeper = databases["api"], databases["sweeper"]
    account = rows.account
    made: list[str] = []

    def create(num: int, **more: Any) -> None:
        lines = [
            _new(
                account, lane="bulk", batch_line=line + 2, retry_of=job_id(2 * line + 1) if line % 2 else None
            )
            for line in range(num)
        ]
        made.append(batches.create(api, account, "x.csv", lines, **more)[0].id)

    yield "create batch", lambda: create(100, webhook_url="https://hooks1.example.com/", idempotency_key="b")
    yield "create batch once", lambda: create(100, idempotency_key="b")
    yield "create an empty batch", lambda: create(0, webhook_url="https://hooks1.example.com/")
    yield "cancel batch", lambda: batches.cancel(api, account, made[0])
    yield "cancel the long batch", lambda: batches.cancel(api, account, rows.batch)
    yield "fold", lambda: counts.fold(sweeper)
    yield "get batch afterwards", lambda: batches.get(api, account, rows.batch)


def _erasure(rows: Rows, databases: Mapping[str, Database]) -> Iterator[Step]:
    """At the end, since the others read what it erases."""
    api, sweeper = databases["api"], databases["sweeper"]
    yield "delete_images", lambda: erasure.delete_images(api, rows.account, job_id(3))
    yield "erase", lambda: erasure.erase(api, rows.account, job_id(5))
    for lane in ("interactive", "bulk"):
        yield f"erase_old {lane}", partial(erasure.erase_old, sweeper, lane, kept_seconds=0, limit=10)
    yield "erase_old, nothing", lambda: erasure.erase_old(sweeper, "bulk", kept_seconds=10**9)
    yield "needless_objects", lambda: objects.needless_objects(sweeper)
    yield "forget_object", lambda: objects.forget_object(sweeper, objects.needless_objects(sweeper)[0].key)
    yield "note_missing", lambda: objects.note_missing(databases[OWNER], ["x/1"])
    with databases[OWNER].transaction() as connection:
        yield "named_objects", lambda: next(objects.named_objects(connection))


def _vacuum(databases: Mapping[str, Database]) -> None:
    """As autovacuum does, before a call that usually comes long after the one before it."""
    databases[OWNER].execute(text("VACUUM jobs, webhook_deliveries"))


def _replay_again(api: Database, claimed: Any) -> None:
    with suppress(DeliveryIsPending):
        deliveries.replay(api, claimed.account_id, claimed.id)


def _new(account: str, **changes: Any) -> NewJob:
    image = {"image": changes.pop("image")} if "image" in changes else {}
    asked: dict[str, Any] = {
        "prompt": "a lighthouse",
        "width": 512,
        "height": 512,
        "num_inference_steps": 30,
        "guidance_scale": 4.0,
        "scheduler": "ddim",
        "seed": 1,
        **image,
    }
    named: dict[str, Any] = {"model": "tiny", "tier": "sd", "lane": "interactive"}
    return NewJob(account_id=account, parameters=Parameters(**asked), **{**named, **changes})


def _profile(**more: Any) -> TierProfile:
    steps = tuple(StepCost.of_median(num_rows, num_rows / 10) for num_rows in (1, 2, 4))
    key = PublishedKey("print", "cpu", 512, 512)
    profile = Profile(key=key, steps=steps, encode_seconds=0.1, decode_seconds=0.1, num_guided_rows=2, **more)
    return TierProfile("sd", "tiny", profile)

"""The system under test: all of `calotype up` but its workers, with two accounts, and programs beside it.

It knows processes, addresses and rows. It draws no faults and judges nothing.
"""

import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from bench.configuration import write_configuration
from bench.faulty_proxy import Proxies, proxied
from local.endpoints import Endpoints, addresses, base_environment
from local.process import tail
from local.roles import Role
from local.state import State
from local.up import running
from storage import accounts
from storage.blobs import Blobs
from storage.database import Database
from storage.errors import Unavailable
from storage.workers import declare_dead
from tasks.device_record import read_record, record_path
from tests.chaos.crashes import Crash
from tests.chaos.program import Program, Start, start
from tests.chaos.store_proxy import StoreProxy, store_proxied

LEASE_SECONDS = 3
TENTH: Mapping[str, str] = {
    "CALOTYPE_LEASE_SECONDS": f"{LEASE_SECONDS}",
    "CALOTYPE_HEARTBEAT_SECONDS": "0.5",
    "CALOTYPE_SWEEP_SECONDS": "0.1",
    "CALOTYPE_REDISPATCH_SECONDS": "1.5",
    "CALOTYPE_WATCHDOG_SECONDS": "6",
}
"""Every period of the service at a tenth, so that a fault and its repair take seconds."""
HASTY: Mapping[str, str] = {**TENTH, "CALOTYPE_WATCHDOG_SECONDS": "2"}
"""For jobs that hang, each of which is found out by the watchdog four times."""
START_SECONDS, STOP_SECONDS = 60.0, 20.0
POLL_SECONDS, LOOK_SECONDS, CLAIM_SECONDS, STALE_SECONDS = 0.05, 0.005, 2.0, 1.5
ACCOUNTS = ("first", "second")


_patient = retry(
    retry=retry_if_exception_type(Unavailable),
    stop=stop_after_delay(START_SECONDS),
    wait=wait_fixed(0.1),
    reraise=True,
)


@dataclass(frozen=True)
class Account:
    """One of the accounts that submit."""

    id: str
    api_key: str


@dataclass
class System:
    """A running system; `rows` reads it as the owner of the tables."""

    url: str
    folder: Path
    endpoints: Endpoints
    """Of the services themselves, which the harness uses."""
    proxied_endpoints: Endpoints
    """Of the proxies before them, which all programs use."""
    settings: Mapping[str, str]
    db: Database
    blobs: Blobs
    accounts: Sequence[Account]
    proxies: Proxies
    store: StoreProxy
    ready_file: Path
    endpoint_ports: Mapping[str, int]
    """Of the services themselves, by name."""

    def pid_of(self, service: str) -> int:
        """The process of a service that the supervisor runs, now."""
        services = json.loads(self.ready_file.read_text("utf-8"))["services"]
        return next(int(one["pid"]) for one in services if one["name"] == service)

    def rows(self, statement: str, *parameters: Any) -> list[Any]:
        """Read or change rows; waits for a Postgres that is away."""
        return _patient(self._rows)(statement, parameters)

    def _rows(self, statement: str, parameters: tuple[Any, ...]) -> list[Any]:
        with self.db.transaction(seconds=60) as connection:
            result = connection.exec_driver_sql(statement, parameters)
            return list(result) if result.returns_rows else []

    def now(self) -> float:
        """The database's clock, in seconds since 1970."""
        [(seconds,)] = self.rows("SELECT extract(epoch FROM clock_timestamp())::float8")
        return float(seconds)

    def environment_of(self, role: Role) -> dict[str, str]:
        """The environment of a program with the credentials of a role."""
        return {
            **base_environment(),
            **self.settings,
            **self.proxied_endpoints.environment_of(role),
            "CALOTYPE_PUBLIC_URL": self.url,
            "OMP_NUM_THREADS": "1",
        }


@contextmanager
def chaos_system(
    folder: Path, settings: Mapping[str, str] = TENTH, seed: int = 1, *, host: str | None = None
) -> Iterator[System]:
    """Run everything but workers while the body runs; programs reach the services through proxies.

    At a `host` that others reach, there is no proxy in between: the network fails instead.
    """
    config = write_configuration(folder, [])
    own = {"CALOTYPE_CONFIG": str(config), "CALOTYPE_PROFILES_DIR": str(folder / "profiles"), **settings}
    with ExitStack() as stack:
        proxies: list[Proxies] = []
        stores: list[StoreProxy] = []

        def reached_at(ports: Mapping[str, int]) -> Mapping[str, int]:
            behind = {name: ports[name] for name in ("postgres", "valkey")}
            proxies.append(stack.enter_context(proxied(behind)))
            stores.append(stack.enter_context(store_proxied(ports["s3"], seed)))
            if host:
                return ports
            return {**proxies[0].ports, "s3": stores[0].port}

        ready_file = folder / "ready.json"
        ready = stack.enter_context(
            running(folder / "data", host=host, ready_file=ready_file, overrides=own, reached_at=reached_at)
        )
        state = State.read(folder / "data")
        direct = addresses(state)
        proxied_ports = {} if host else {**proxies[0].ports, "s3": stores[0].port}
        db = Database(direct.database_url, 4)
        stack.callback(db.close)
        made = [accounts.create_account(db, name) for name in ACCOUNTS]
        yield System(
            ready["url"],
            folder,
            direct,
            addresses(replace(state, ports={**state.ports, **proxied_ports})),
            own,
            db,
            _blobs(direct),
            [Account(one, accounts.create_key(db, one, "chaos").plaintext) for one in made],
            proxies[0],
            stores[0],
            ready_file,
            state.ports,
        )


def _blobs(endpoints: Endpoints) -> Blobs:
    return Blobs(
        endpoint=endpoints.s3_endpoint,
        public_endpoint=endpoints.s3_endpoint,
        region=endpoints.s3_region,
        access_key=endpoints.s3_access_key,
        secret_key=endpoints.s3_secret_key,
        bucket=endpoints.bucket,
    )


@dataclass(frozen=True)
class Death:
    """A program that ended: when, by the database's clock, and the boot id that it had."""

    crash: Crash | None
    boot_id: str
    at: float


@dataclass
class Kept:
    """A program that is started again whenever it ends, with the next crash, until it is told to stop.

    `next_crash` returns None once there is no more to crash. The jobs of a worker that ended are taken back
    as the supervisor of `calotype up` does it.
    """

    system: System
    name: str
    program: Program
    role: Role
    next_crash: Callable[[], Crash | None]
    port: int = 0
    host: str = "127.0.0.1"
    namespace: str = ""
    mutant: str = ""
    step_seconds: float = 0.005
    tiers: tuple[str, ...] = ()
    may_end: bool = False
    """Whether it may end by itself, as a worker does that receives no message any more."""
    takes_back: bool = True
    """Whether its host is there to see its end; else nothing but the end of its leases tells."""
    deaths: list[Death] = field(default_factory=list)
    pauses: list[str] = field(default_factory=list)
    num_starts: int = 0

    def __post_init__(self) -> None:
        self.run_folder = self.system.folder / "run"
        self.run_folder.mkdir(exist_ok=True)
        self._stopping = threading.Event()
        self._is_restarting = False
        self._pid, self._boot_id = 0, ""
        self._thread = threading.Thread(target=self._run, name=f"keep-{self.name}")
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Start the program."""
        self._thread.start()

    def end(self) -> None:
        """Let it end by SIGTERM, and do not start it again."""
        self._stopping.set()

    def join(self) -> None:
        """Wait for its end."""
        if self._thread.ident is not None:
            self._thread.join()

    def kill(self) -> tuple[str, float]:
        """End it by SIGKILL once it is ready; returns its boot id, and when, by the database's clock."""
        wait_until(self._is_ready, START_SECONDS, f"{self.name} is ready")
        boot_id, pid, at = self._boot_id, self._pid, self.system.now()
        os.kill(pid, signal.SIGKILL)
        (self.system.folder / f"{self.name}.ready").unlink(missing_ok=True)
        return boot_id, at

    @property
    def boot_id(self) -> str:
        """Of the process that runs now."""
        return self._boot_id

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self._pid, number)

    def restart(self) -> None:
        """End it by SIGTERM, and wait until the next one is ready."""
        before = self.num_starts
        self._is_restarting = True
        wait_until(lambda: self.num_starts > before and self._is_ready(), START_SECONDS, "it has restarted")

    def _is_ready(self) -> bool:
        return (self.system.folder / f"{self.name}.ready").exists()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._run_once()
        except BaseException as error:
            self.failure = error

    def _run_once(self) -> None:
        boot_id, crash = str(uuid.uuid4()), self.next_crash()
        environment = {**self.system.environment_of(self.role), "CALOTYPE_BOOT_ID": boot_id}
        if self.takes_back:
            environment["CALOTYPE_RUN_DIR"] = str(self.run_folder)
        what = Start(
            self.name,
            environment,
            self.system.folder,
            crash,
            self.port,
            self.host,
            self.namespace,
            self.step_seconds,
            self.tiers,
            self.mutant,
        )
        process = start(self.program, what)
        self._pid, self._boot_id = process.pid or 0, boot_id
        self.num_starts += 1
        self._watch(process, crash, boot_id)
        is_told = self._stopping.is_set() or self._is_restarting
        self._is_restarting = False
        has_crashed = what.crash_file.exists() and crash is not None and not crash.is_pause
        if not (is_told or has_crashed or self.may_end):
            raise RuntimeError(f"{self.name} ended by itself:\n{tail(what.log, 30)}")
        self.deaths.append(Death(crash if has_crashed else None, boot_id, self.system.now()))
        if self.takes_back:
            self._take_back(boot_id)

    def _watch(self, process: BaseProcess, crash: Crash | None, boot_id: str) -> None:
        """Wait for the end of a process; one that has stopped itself goes on, and is ended, later."""
        while process.is_alive():
            process.join(POLL_SECONDS)
            if crash is not None and crash.is_pause and _is_stopped(process.pid or 0):
                was_held = self._let_its_leases_run_out(boot_id)
                os.kill(process.pid or 0, signal.SIGCONT)
                process.join(STALE_SECONDS)  # in which it tries to write what it has
                if not process.is_alive():
                    break
                if was_held:
                    self.pauses.append(crash.point)
                self._is_restarting = True
            if self._stopping.is_set() or self._is_restarting:
                process.terminate()
                process.join(STOP_SECONDS)
                process.kill()
        process.join()

    def _let_its_leases_run_out(self, boot_id: str) -> bool:
        """Wait until its jobs were reaped and one of them runs elsewhere; returns whether it had any."""
        query = "SELECT id FROM jobs WHERE state = 'running' AND lease_boot_id = %s"
        held = [row.id for row in self.system.rows(query, boot_id)]
        wait_until(lambda: not self.system.rows(query, boot_id), START_SECONDS, "its leases have run out")
        elsewhere = "SELECT id FROM jobs WHERE state = 'running' AND id = ANY(%s) LIMIT 1"
        deadline = time.monotonic() + CLAIM_SECONDS
        while time.monotonic() < deadline and not self.system.rows(elsewhere, held):
            time.sleep(LOOK_SECONDS)
        return bool(held)

    def _take_back(self, boot_id: str) -> None:
        record = record_path(self.run_folder, boot_id)
        _patient(declare_dead)(self.system.db, boot_id=boot_id, on_device=read_record(record))
        record.unlink(missing_ok=True)


@contextmanager
def kept(programs: Sequence[Kept]) -> Iterator[None]:
    """Keep programs running while the body runs."""
    try:
        for one in programs:
            one.start()
        yield
    finally:
        for one in programs:
            one.end()
        for one in programs:
            one.join()
    for one in programs:
        if one.failure is not None:
            raise one.failure


def _is_stopped(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


def wait_until(is_so: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until it is so; raises `TimeoutError`."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not so after {seconds:.0f} s")
        time.sleep(0.05)

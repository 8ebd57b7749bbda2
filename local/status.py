"""Reports what runs in a data folder: from the lock, the ready file, the processes and the API.

The report holds no secret. It changes nothing and starts nothing.
"""

import json
from pathlib import Path
from typing import Any

from client.calotype import CalotypeError, Client
from local.endpoints import addresses
from local.errors import LocalError, NothingThere, WrongUsage
from local.holder import find_holder
from local.process import is_alive
from local.roles import ROLES
from local.state import READY_FILE, State

Document = dict[str, Any]

_TIMEOUT_SECONDS = 15
_SHOWN = ("url", "flower_url", "metrics_url", "logs", "started_at")


def read_ready(folder: Path) -> Document | None:
    """Return the content of the ready file of that folder, secrets included, or None."""
    try:
        document = json.loads((folder / READY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) and "pid" in document else None


def ready_of(data_dir: Path) -> Document:
    """Return the content of the ready file of the running `calotype up`, secrets included.

    Raises `NothingThere` if none runs, and `LocalError` while it starts or stops.
    """
    folder = data_dir.absolute()
    with find_holder(folder) as holder:
        if holder is None:
            raise NothingThere(f"nothing runs in {folder}: start it by `calotype up`")
        pid = holder.pid
    ready = read_ready(folder)
    if ready is None or ready["pid"] != pid:
        raise LocalError(f"process {pid} is starting or stopping in {folder}: see `calotype status`")
    return ready


def environment_of(role: str, ready: Document) -> dict[str, str]:
    """Return the settings of a process of this role that runs on another host, passwords included.

    Raises `WrongUsage`.
    """
    known = next((one for one in ROLES if one == role), None)
    if known is None:
        raise WrongUsage(f"--role: {role!r} is none of {', '.join(ROLES)}")
    found = addresses(State.read(Path(ready["data_dir"]))).environment_of(known)
    return {name: value for name, value in found.items() if value} | {"CALOTYPE_PUBLIC_URL": ready["url"]}


def status_of(data_dir: Path) -> Document | None:
    """Return what runs there, or None. `state` is `running`, or `changing` while it starts or stops."""
    folder = data_dir.absolute()
    with find_holder(folder) as holder:
        if holder is None:
            return None
        pid = holder.pid
    ready = read_ready(folder)
    if ready is None or ready["pid"] != pid:
        return {"data_dir": str(folder), "state": "changing", "pid": pid}
    tiers, problem = _tiers(ready)
    return {
        "data_dir": str(folder),
        "state": "running",
        "pid": pid,
        **{name: ready[name] for name in _SHOWN},
        "ports": _ports(folder),
        "services": [_process(entry) for entry in ready["services"]],
        "workers": [_process(entry) for entry in ready["workers"]],
        "tiers": tiers,
        "problem": problem,
    }


def _process(entry: Document) -> Document:
    """Describe a service or a worker, and whether its process is alive; a dead one is being restarted."""
    return {**entry, "state": "running" if is_alive(entry["pid"]) else "restarting"}


def _tiers(ready: Document) -> tuple[list[Document] | None, str | None]:
    """Return each tier with its queue as the API reports them, or nothing and the reason."""
    try:
        with Client(
            url=ready["url"], api_key=ready["api_key"], timeout_seconds=_TIMEOUT_SECONDS, max_retries=0
        ) as client:
            return [tier.raw for tier in client.tiers()], None
    except CalotypeError as error:
        return None, f"the API does not report its queues: {error}"


def _ports(folder: Path) -> dict[str, int]:
    try:
        return State.read(folder).ports
    except LocalError:
        return {}

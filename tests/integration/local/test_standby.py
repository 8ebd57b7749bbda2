import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from local.standby import ImportGroup, Standbys
from local.supervisor import Service, Supervisor
from settings import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="no process can adopt orphans")

SERVICE = """
import json, os, signal, sys, time
import shared
def end(*_):
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
facts = {"pid": os.getpid(), "importer": shared.pid, "secret": os.environ.get("SECRET"),
         "arguments": sys.argv[1:], "further": sorted({"further"} & set(sys.modules)),
         "cores": sorted(os.sched_getaffinity(0)), "session_of_its_own": os.getpgid(0) == os.getpid()}
print(json.dumps(facts), flush=True)
time.sleep(600)
"""

LATE = """
import time
from pathlib import Path
while not Path(__file__).with_name("go").exists():
    time.sleep(0.01)
"""
SET_SUBREAPER, GET_SUBREAPER = 36, 37  # of prctl(2)


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """A folder with the modules `shared`, which notes who imported it, `further` and `service`."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "shared.py").write_text("import os\npid = os.getpid()\n")
    (folder / "further.py").write_text("")
    (folder / "broken.py").write_text("raise ImportError('broken')\n")
    (folder / "endless.py").write_text("import time\ntime.sleep(600)\n")
    (folder / "late.py").write_text(LATE)
    (folder / "late_and_broken.py").write_text(f"{LATE}raise ImportError('late')\n")
    (folder / "service.py").write_text(SERVICE)
    return folder


@pytest.fixture(params=[False, True])
def adopts_orphans(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether orphans were adopted by this process before."""
    before = is_subreaper()
    set_subreaper(request.param)
    yield request.param
    set_subreaper(before)


def set_subreaper(wanted: bool) -> None:
    assert ctypes.CDLL(None).prctl(SET_SUBREAPER, int(wanted), 0, 0, 0) == 0


def is_subreaper() -> bool:
    found = ctypes.c_int()
    assert ctypes.CDLL(None).prctl(GET_SUBREAPER, ctypes.byref(found), 0, 0, 0) == 0
    return bool(found.value)


def standbys(folder: Path, *groups: ImportGroup, import_seconds: float = 120) -> Standbys:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{folder}:{ROOT}"}
    return Standbys(groups, environment=environment, logs=folder.parent, import_seconds=import_seconds)


def service(name: str, folder: Path, **more: object) -> Service:
    """A service that is ready once it has printed its facts, and has a secret of its own."""
    log = folder.parent / f"{name}.log"
    return Service(
        name=name,
        command=lambda: [sys.executable, "-m", "service", name],
        environment=lambda: {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), "SECRET": f"of {name}"},
        cwd=folder,
        ready=lambda: log.exists() and "}" in log.read_text(),
        **more,  # type: ignore[arg-type]
    )


def facts(folder: Path, name: str) -> list[dict[str, object]]:
    """What each process of that service printed."""
    return [json.loads(line) for line in (folder.parent / f"{name}.log").read_text().splitlines()]


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def processes_with(folder: Path) -> list[int]:
    """Every process that has this folder on its Python path, from its start."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def forked_with(folder: Path) -> list[int]:
    """Those of them that were forked: each process that the supervisor starts begins a session."""
    return [pid for pid in processes_with(folder) if os.getsid(pid) != pid]


def test_services_are_forked_from_one_process_that_has_imported_what_they_share(modules: Path) -> None:
    groups = [ImportGroup(("shared",), {"one": ("further",), "two": ()})]
    services = [service("one", modules, cores=frozenset({0})), service("two", modules)]
    supervisor = Supervisor(services, print, logs=modules.parent, standbys=standbys(modules, *groups))
    with supervisor.background():
        (one,), (two,) = facts(modules, "one"), facts(modules, "two")
        assert {"one": one["pid"], "two": two["pid"]} == supervisor.pids()
    assert one["importer"] == two["importer"]
    assert one["importer"] not in (one["pid"], two["pid"])
    assert (one["secret"], two["secret"]) == ("of one", "of two")
    assert (one["arguments"], two["arguments"]) == (["one"], ["two"])
    assert (one["further"], two["further"]) == (["further"], [])
    assert one["cores"] == [0]
    assert one["session_of_its_own"]
    assert two["session_of_its_own"]
    assert processes_with(modules) == []


def test_a_later_group_keeps_what_earlier_groups_imported(modules: Path) -> None:
    groups = [ImportGroup(("shared",), {"one": ()}), ImportGroup(("further",), {"two": ()})]
    services = [service("one", modules), service("two", modules)]
    supervisor = Supervisor(services, print, logs=modules.parent, standbys=standbys(modules, *groups))
    with supervisor.background():
        (one,), (two,) = facts(modules, "one"), facts(modules, "two")
    assert one["importer"] == two["importer"]
    assert (one["further"], two["further"]) == ([], ["further"])


def test_a_forked_service_that_dies_is_reported_and_restarted_as_usual(modules: Path) -> None:
    ends: list[int] = []
    one = service("one", modules, on_exit=lambda end: ends.append(end.returncode))
    supervisor = Supervisor(
        [one],
        print,
        logs=modules.parent,
        standbys=standbys(modules, ImportGroup(("shared",), {"one": ()})),
    )
    with supervisor.background():
        first = supervisor.pid("one")
        assert first is not None
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: len(facts(modules, "one")) == 2)
        wait_for(lambda: ends)
    again = facts(modules, "one")[1]
    assert again["importer"] == again["pid"] != first
    assert ends[0] == -signal.SIGKILL
    assert ends[1:] == [0]


@pytest.mark.parametrize(
    "group", [ImportGroup(("broken",), {"one": ()}), ImportGroup((), {"one": ("broken",)})]
)
def test_a_service_whose_modules_cannot_be_imported_is_started_as_usual(
    modules: Path, group: ImportGroup
) -> None:
    supervisor = Supervisor(
        [service("one", modules)], print, logs=modules.parent, standbys=standbys(modules, group)
    )
    with supervisor.background():
        (one,) = facts(modules, "one")
    assert one["importer"] == one["pid"]
    assert "ImportError: broken" in (modules.parent / "import.log").read_text()


def test_a_service_without_imports_does_not_wait_for_those_of_others(modules: Path) -> None:
    groups = [ImportGroup(("endless",), {"other": ()})]
    supervisor = Supervisor(
        [service("one", modules)], print, logs=modules.parent, standbys=standbys(modules, *groups)
    )
    with supervisor.background():
        assert len(facts(modules, "one")) == 1
    assert processes_with(modules) == []


@pytest.mark.parametrize("module", ["late", "late_and_broken"])
def test_a_process_whose_imports_end_too_late_leaves_no_zombie(modules: Path, module: str) -> None:
    one = service("one", modules)
    waiting = standbys(modules, ImportGroup((), {"one": (module,)}), import_seconds=0)
    wait_for(lambda: forked_with(modules))
    (late,) = forked_with(modules)
    supervisor = Supervisor([one], print, logs=modules.parent, standbys=waiting)
    with supervisor.background():
        (started,) = facts(modules, "one")
        assert started["importer"] == started["pid"]
        assert Path(f"/proc/{late}").exists()
        (modules / "go").touch()
        wait_for(lambda: not Path(f"/proc/{late}").exists(), 20)


def test_orphans_are_adopted_afterwards_if_they_were_before(modules: Path, adopts_orphans: bool) -> None:
    waiting = standbys(modules, ImportGroup(("endless",), {"one": ()}))
    assert is_subreaper()
    waiting.close()
    assert is_subreaper() is adopts_orphans


def test_closing_ends_what_waits_and_what_still_imports(modules: Path) -> None:
    groups = [
        ImportGroup(("shared",), {"one": (), "two": ("endless",)}),
        ImportGroup(("endless",), {"three": ()}),
    ]
    waiting = standbys(modules, *groups)
    wait_for(lambda: not waiting.is_pending("one"))
    assert waiting.is_pending("two")
    waiting.close()
    assert processes_with(modules) == []
    assert waiting.claim("one") is None


def test_a_killed_supervisor_leaves_no_process_in_waiting(modules: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from local.standby import ImportGroup, Standbys\n"
        "folder = Path(sys.argv[1])\n"
        "one = Standbys([ImportGroup(('shared',), {'one': (), 'two': ('endless',)}),\n"
        "                ImportGroup(('endless',), {'three': ()})], logs=folder.parent,\n"
        "               environment={'PYTHONPATH': f'{folder}:' + sys.argv[2]})\n"
        "while one.is_pending('one'): time.sleep(0.01)\n"
        "print('up', flush=True); time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, str(modules), str(ROOT)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout
        assert supervisor.stdout.readline() == b"up\n"
        assert processes_with(modules)
        supervisor.kill()
    wait_for(lambda: not processes_with(modules))

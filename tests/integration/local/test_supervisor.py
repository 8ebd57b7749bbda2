import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from local.errors import StartFailed
from local.supervisor import Exit, Service, Step, Supervisor

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('up', flush=True); time.sleep(600)"
)


def python(name: str, code: str, logs: Path, **more: object) -> Service:
    """A service that is ready once it has printed `up`."""
    log = logs / f"{name}.log"
    return Service(
        name=name,
        command=lambda: [sys.executable, "-c", code],
        environment=lambda: {"PATH": os.environ["PATH"], "STARTED": str(time.monotonic_ns())},
        cwd=logs,
        **{"ready": lambda: log.exists() and "up" in log.read_text(), **more},  # type: ignore[arg-type]
    )


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_stages_start_in_order_and_stop_in_reverse(tmp_path: Path) -> None:
    order = tmp_path / "order"
    code = (
        "import signal, sys, time\n"
        "def note(what): open({order!r}, 'a').write(what + ' {name}\\n')\n"
        "def end(*_): note('stop'); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "note('start'); print('up', flush=True)\n"
        "while True: time.sleep(600)\n"
    )
    services = [
        python(name, code.format(order=str(order), name=name), tmp_path, stage=stage)
        for stage, name in ((1, "web"), (0, "database"))
    ]
    step = Step("migrate", lambda: _append(order, "migrate\n"), stage=1)
    supervisor = Supervisor(services, print, logs=tmp_path, steps=[step])
    with supervisor.background():
        pids = supervisor.pids()
    assert order.read_text().splitlines() == [
        "start database",
        "migrate",
        "start web",
        "stop web",
        "stop database",
    ]
    assert not any(is_alive(pid) for pid in pids.values())


def test_what_dies_is_restarted_and_its_end_is_reported_with_its_environment(tmp_path: Path) -> None:
    ends: list[Exit] = []
    changes: list[int] = []
    said: list[str] = []
    service = python("sleeper", SLEEPER, tmp_path, on_exit=ends.append)
    supervisor = Supervisor(
        [service], said.append, logs=tmp_path, on_change=lambda: changes.append(time.monotonic_ns())
    )
    with supervisor.background():
        first = supervisor.pids()["sleeper"]
        assert len(changes) == 1
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: ends)
        wait_for(lambda: len(changes) == 2)
        second = supervisor.pids()["sleeper"]
        assert second != first
        assert (ends[0].pid, ends[0].returncode) == (first, -signal.SIGKILL)
        assert int(ends[0].environment["STARTED"]) < changes[0]
    assert any("sleeper ended by SIGKILL: restarting in 0.2 s" in line for line in said)
    assert [end.pid for end in ends] == [first, second]


def test_pause_between_restarts_doubles(tmp_path: Path) -> None:
    said: list[str] = []
    flag = tmp_path / "flag"
    code = (
        f"import os, time; print('up', flush=True); time.sleep(0 if os.path.exists({str(flag)!r}) else 600)"
    )
    supervisor = Supervisor([python("failing", code, tmp_path)], said.append, logs=tmp_path)
    with supervisor.background():
        flag.touch()
        os.kill(supervisor.pids()["failing"], signal.SIGKILL)
        wait_for(lambda: sum("restarting" in line for line in said) >= 4)
    pauses = [line.split("restarting in ")[1].split(" s")[0] for line in said if "restarting" in line]
    assert pauses[:4] == ["0.2", "0.4", "0.8", "1.6"]


def test_service_that_never_gets_ready_is_an_error_that_names_and_shows_its_log(tmp_path: Path) -> None:
    code = "import time; print('looking for a model', flush=True); time.sleep(600)"
    service = python("mute", code, tmp_path, start_seconds=0.5)
    with pytest.raises(StartFailed) as caught:
        Supervisor([service], print, logs=tmp_path).run()
    assert "mute is not ready after" in str(caught.value)
    assert str(tmp_path / "mute.log") in str(caught.value)
    assert "looking for a model" in str(caught.value)


def test_service_that_ends_at_its_start_is_an_error_with_its_code(tmp_path: Path) -> None:
    service = python("broken", "import sys; sys.exit('no weights')", tmp_path)
    with pytest.raises(StartFailed, match=r"(?s)broken ended with code 1 at its start.*no weights"):
        Supervisor([service], print, logs=tmp_path).run()


def test_service_without_a_probe_that_ends_while_others_start_is_an_error(tmp_path: Path) -> None:
    broken = python("broken", "import sys; sys.exit('no broker')", tmp_path, ready=lambda: True)
    slow = python("slow", SLEEPER.replace("print", "time.sleep(5); print"), tmp_path)
    with pytest.raises(StartFailed, match=r"(?s)broken ended with code 1 at its start.*no broker"):
        Supervisor([broken, slow], print, logs=tmp_path).run()


def test_what_dies_while_a_later_stage_starts_is_restarted(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    first = python("first", SLEEPER, tmp_path)
    second = python("second", SLEEPER, tmp_path, stage=1, ready=flag.exists)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "first is ready again" in line:
            flag.touch()

    supervisor = Supervisor([first, second], say, logs=tmp_path)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    wait_for(lambda: supervisor.pid("second"))
    os.kill(supervisor.pids()["first"], signal.SIGKILL)
    assert supervisor.started.wait(10)
    supervisor.stop()
    thread.join()
    assert any("first ended by SIGKILL" in line for line in said)


def test_program_that_does_not_exist_is_an_error_that_names_it(tmp_path: Path) -> None:
    service = Service(
        "absent", lambda: ["/no/such/program"], dict, tmp_path, ready=lambda: False, start_seconds=10
    )
    with pytest.raises(StartFailed, match="cannot run /no/such/program"):
        Supervisor([service], print, logs=tmp_path).run()


def test_what_ignores_its_end_is_killed_with_its_children(tmp_path: Path) -> None:
    child = tmp_path / "child"
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(child)!r}, 'w').write(str(p.pid)); print('up', flush=True); time.sleep(600)\n"
    )
    supervisor = Supervisor([python("parent", code, tmp_path, stop_seconds=0.3)], print, logs=tmp_path)
    with supervisor.background():
        pid = supervisor.pids()["parent"]
    assert not is_alive(pid)
    wait_for(lambda: not is_alive(int(child.read_text())))


def test_second_interrupt_kills_at_once(tmp_path: Path) -> None:
    supervisor = Supervisor([python("stubborn", STUBBORN, tmp_path, stop_seconds=600)], print, logs=tmp_path)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    assert supervisor.started.wait(10)
    supervisor.stop()
    supervisor.stop(at_once=True)
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert supervisor.pids() == {}


def test_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from local.supervisor import Service, Supervisor\n"
        f"logs = Path({str(tmp_path)!r})\n"
        "command = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "s = Supervisor([Service('child', lambda: command, lambda: {}, logs)], print, logs=logs,\n"
        "               on_change=lambda: print(s.pids()['child'], flush=True))\n"
        "s.run()\n"
    )
    root = Path(__file__).parents[3]
    pids: list[int] = []

    def note(line: str) -> None:
        pids.extend(int(word) for word in line.split() if word.isdigit())

    outer = Service(
        "outer",
        lambda: [sys.executable, "-c", code],
        lambda: {"PATH": os.environ["PATH"], "PYTHONPATH": str(root)},
        tmp_path,
        ready=lambda: (tmp_path / "outer.log").read_text().strip().split("\n")[-1].isdigit(),
    )
    supervisor = Supervisor([outer], note, logs=tmp_path)
    with supervisor.background():
        child = int((tmp_path / "outer.log").read_text().split()[-1])
        assert is_alive(child)
        os.kill(supervisor.pids()["outer"], signal.SIGKILL)
        wait_for(lambda: not is_alive(child))


def test_child_runs_on_its_cores_alone(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    code = "import os, time; print('up', sorted(os.sched_getaffinity(0)), flush=True); time.sleep(600)"
    service = python("pinned", code, tmp_path, cores=frozenset({core}))
    with Supervisor([service], print, logs=tmp_path).background():
        assert f"up [{core}]" in (tmp_path / "pinned.log").read_text()


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_S42_logs_stay_bounded_while_their_services_run_and_the_supervisors_own_does(tmp_path: Path) -> None:
    code = (
        "import time\nfor number in range(10**9): print(f'line {number:07}', flush=True); time.sleep(0.0005)"
    )
    ours = tmp_path / "up.log"
    with os.fdopen(os.open(ours, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "w", buffering=1) as output:
        supervisor = Supervisor(
            [python("talker", code, tmp_path, ready=lambda: True)],  # its log may be emptied by then
            lambda said: print(said, file=output),
            logs=tmp_path,
            max_log_bytes=50,
        )
        with supervisor.background():
            pid = supervisor.pid("talker")
            wait_for(lambda: (tmp_path / "talker.3.log").exists(), 60)
            print("more than fits" * 10, file=output)
            wait_for(lambda: (tmp_path / "up.1.log").exists(), 60)
            assert supervisor.pid("talker") == pid
    assert "talker is ready" in "".join(part.read_text() for part in tmp_path.glob("up*.log"))
    assert len(list(tmp_path.glob("talker*.log"))) == 4

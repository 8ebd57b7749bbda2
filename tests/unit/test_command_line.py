"""The promises of the command line where nothing runs: exit codes, terminals, pipes and Ctrl-C."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.local import ASSIGNMENTS, Shell
from cli.terminal import EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_USAGE
from settings import ROOT, Settings
from web.app import VERSION

CALOTYPE = [sys.executable, "-m", "cli"]
ESCAPE = "\x1b"
STYLE = re.compile(r"\x1b\[[\d;]*m")


def environment(**changes: str) -> dict[str, str]:
    """Ours, without what would change an answer."""
    foreign = {"NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "COLUMNS", "TERM"}
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    return {name: value for name, value in kept.items() if not name.startswith("CALOTYPE_")} | changes


def in_a_pipe(*arguments: str, **changes: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*CALOTYPE, *arguments],
        cwd=ROOT,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def on_a_terminal(*arguments: str, **changes: str) -> str:
    """What the command writes to a terminal of its own."""
    ours, theirs = pty.openpty()
    changes = {"TERM": "xterm-256color", "COLUMNS": "100", **changes}
    with subprocess.Popen(
        [*CALOTYPE, *arguments], cwd=ROOT, env=environment(**changes), stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        written = b""
        while True:
            try:
                part = os.read(ours, 65_536)
            except OSError:  # how Linux says that the other side is closed
                break
            if not part:
                break
            written += part
        process.wait(timeout=120)
    os.close(ours)
    return written.decode()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data folder in which two services once ran."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "web.log").write_text("started\n\x1b[31mred\x1b[0m\n")
    (tmp_path / "logs" / "sweep.log").write_text("".join(f"turn {number}\n" for number in range(50_000)))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--help",), 0, "Usage: calotype"),
        (("--version",), 0, "calotype"),
        (("doctr",), EXIT_USAGE, "Did you mean 'doctor'?"),
        (("jobs", "--state", "done"), EXIT_USAGE, "'--state'"),
        (("jobs", "--limit", "0"), EXIT_USAGE, "'--limit'"),
        (("logs", "--lines", "-1"), EXIT_USAGE, "'--lines'"),
        (("submit", "a", "--width", "wide"), EXIT_USAGE, "'--width'"),
        (("submit",), EXIT_USAGE, "'prompt'"),
        (("up", "--port", "0"), EXIT_USAGE, "'--port'"),
        (("openapi", "-o", "/no/such/folder/a.json"), EXIT_USAGE, "/no/such/folder"),
        (("openapi", "-o", "/tmp"), EXIT_USAGE, "/tmp is a folder"),
        (("submit", "a", "-o", "/tmp"), EXIT_USAGE, "/tmp is a folder"),
        (("demo", "--csv", "/nope"), EXIT_USAGE, "--csv: /nope is not a file"),
        (("worker", "--device", "foo"), EXIT_USAGE, "this machine has no foo"),
        (("worker", "--device", "cpu:0", "--tiers", "zzz"), EXIT_USAGE, "there is no tier 'zzz'"),
        (("get", "bat_1", "-o", "a.png", "--url", "http://127.0.0.1:9", "--api-key", "a"), EXIT_USAGE, "-o"),
        (("get", "job_1", "--data-dir", "/no/such"), EXIT_UNREACHABLE, "calotype up"),
        (("keys", "list", "--data-dir", "/no/such"), EXIT_UNREACHABLE, "calotype up"),
        (("jobs", "--url", "http://[::1", "--api-key", "a"), EXIT_USAGE, "is not an address"),
        (("jobs", "--url", "http://127.0.0.1:9", "--api-key", "ключ"), EXIT_USAGE, "the API key"),
        (("watch", "job_1", "--url", "http://127.0.0.1:9", "--api-key", "a"), EXIT_UNREACHABLE, ":9"),
        (("cancel", "job_1", "--url", "http://127.0.0.1:9", "--api-key", "a"), EXIT_UNREACHABLE, ":9"),
        (("status", "--data-dir", "/no/such"), EXIT_UNREACHABLE, "nothing runs in /no/such"),
        (("down", "--data-dir", "/no/such"), 0, "nothing runs in /no/such"),
        (("logs", "--data-dir", "/no/such"), EXIT_UNREACHABLE, "/no/such/logs"),
        (("config", "check", "--data-dir", "/no/such"), EXIT_UNREACHABLE, "CALOTYPE_BROKER_URL is not set"),
        (("up", "--detach", "--data-dir", "/proc/no"), EXIT_REFUSED, "/proc/no cannot be created"),
    ],
)
def test_an_answer_is_clear_and_its_exit_code_is_the_documented_one(
    arguments: tuple[str, ...], code: int, says: str
) -> None:
    answer = in_a_pipe(*arguments)
    assert answer.returncode == code, answer.stderr
    assert says in re.sub(r"\s*│?\n│?\s*", " ", answer.stdout + answer.stderr)
    assert "Traceback" not in answer.stderr
    assert ESCAPE not in answer.stdout + answer.stderr


def test_a_wrong_setting_is_one_line_that_names_it() -> None:
    answer = in_a_pipe("config", "show", CALOTYPE_LEASE_SECOND="3")
    assert (answer.returncode, len(answer.stderr.splitlines())) == (EXIT_REFUSED, 1)
    assert "did you mean CALOTYPE_LEASE_SECONDS" in answer.stderr


@pytest.mark.parametrize("name", ["CALOTYPE_LEASE_SECOND", "CALOTYPE_S3_PUBLIC_ENDPOINT"])
def test_openapi_says_which_setting_is_wrong_in_one_line(name: str) -> None:
    answer = in_a_pipe("openapi", **{name: "http://[bad"})
    assert (answer.returncode, len(answer.stderr.splitlines())) == (EXIT_REFUSED, 1)
    assert answer.stderr.startswith(f"calotype: {name}")


def test_a_value_that_cannot_be_read_is_one_line_that_names_its_setting() -> None:
    answer = in_a_pipe("config", "show", CALOTYPE_LEASE_SECONDS="soon")
    assert (answer.returncode, len(answer.stderr.splitlines())) == (EXIT_REFUSED, 1)
    assert answer.stderr.startswith("calotype: CALOTYPE_LEASE_SECONDS: Input should be a valid number")


def test_a_terminal_without_utf_8_ends_no_command(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "web.log").write_text("a heart → a png\n", encoding="utf-8")
    answer = in_a_pipe("logs", "web", CALOTYPE_DATA_DIR=str(tmp_path), PYTHONIOENCODING="ascii")
    assert (answer.returncode, answer.stdout) == (0, "a heart ? a png\n")


def test_the_version_is_the_one_of_the_project_and_of_the_api() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert in_a_pipe("--version").stdout == f"calotype {project['version']}\n"
    assert project["version"] == VERSION


def test_the_installed_command_is_the_same_program() -> None:
    command = Path(sys.executable).with_name("calotype")
    answer = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)
    assert answer.stdout == in_a_pipe("--version").stdout


@pytest.mark.parametrize("arguments", [("--help",), ("logs", "-n", "1"), ("doctor",), ("config", "show")])
def test_escape_codes_go_to_a_terminal_and_nowhere_else(data_dir: Path, arguments: tuple[str, ...]) -> None:
    folder = str(data_dir)
    assert STYLE.search(on_a_terminal(*arguments, CALOTYPE_DATA_DIR=folder))
    piped = in_a_pipe(*arguments, CALOTYPE_DATA_DIR=folder)
    assert ESCAPE not in piped.stdout + piped.stderr


@pytest.mark.parametrize("arguments", [("--help",), ("logs", "-n", "1")])
@pytest.mark.parametrize("how", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {}])
def test_a_terminal_that_wants_no_style_gets_none(
    data_dir: Path, arguments: tuple[str, ...], how: dict[str, str]
) -> None:
    first = () if how else ("--no-color",)
    written = on_a_terminal(*first, *arguments, CALOTYPE_DATA_DIR=str(data_dir), **how)
    assert written
    assert ESCAPE not in written


def test_a_log_cannot_drive_the_terminal(data_dir: Path) -> None:
    answer = in_a_pipe("logs", "web", "--data-dir", str(data_dir))
    assert answer.stdout == "started\n [31mred [0m\n"


def test_forced_colour_does_not_make_a_terminal_of_a_pipe() -> None:
    # What is for a person's eyes alone, as a new key, must not go to the log of a CI that forces colour.
    program = (
        "from cli.terminal import out, err; print(out.is_terminal, err.is_terminal);"
        "out.print('a', style='red')"
    )
    for how, text in (
        ({"FORCE_COLOR": "1"}, "\x1b[31ma\x1b[0m\n"),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, "a\n"),
    ):
        answer = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=environment(TERM="xterm", **how),
            capture_output=True,
            text=True,
            check=True,
        )
        assert answer.stdout == "False False\n" + text
    table = in_a_pipe("config", "show", FORCE_COLOR="1").stdout
    assert table.startswith("name\tvalue\tfrom\n")


def test_what_looks_like_an_emoji_stands_as_it_was_written(data_dir: Path) -> None:
    (data_dir / "logs" / "web.log").write_text("a :heart: at 12:ok:00\n")
    answer = in_a_pipe("logs", "web", "--data-dir", str(data_dir))
    assert answer.stdout == "a :heart: at 12:ok:00\n"


def test_each_line_of_several_logs_says_whose_it_is(data_dir: Path) -> None:
    answer = in_a_pipe("logs", "-n", "1", "--data-dir", str(data_dir))
    assert answer.stdout == "sweep | turn 49999\nweb   |  [31mred [0m\n"


def test_a_table_in_a_pipe_is_not_cut_to_a_width() -> None:
    lines = in_a_pipe("config", "show").stdout.splitlines()
    assert lines[0] == "name\tvalue\tfrom"
    assert {len(line.split("\t")) for line in lines} == {3}
    assert f"CALOTYPE_CONFIG\t{ROOT / 'calotype.toml'}\tdefault" in lines


@pytest.mark.parametrize(
    "arguments", [("doctor", "--json"), ("config", "show", "--json"), ("openapi",), ("status", "--json")]
)
def test_what_is_for_programs_is_json_and_nothing_else(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert json.loads(in_a_pipe(*arguments, CALOTYPE_DATA_DIR=str(tmp_path)).stdout)


def test_what_a_model_reads_from_elsewhere_is_shown_and_checked(tmp_path: Path) -> None:
    text = (ROOT / "calotype.toml").read_text(encoding="utf-8")
    part = f'vae = {{ path = "nobody/taesd", revision = "{40 * "a"}" }}\nschedulers ='
    (tmp_path / "calotype.toml").write_text(text.replace("schedulers =", part, 1), encoding="utf-8")
    changes = {"CALOTYPE_CONFIG": str(tmp_path / "calotype.toml"), "CALOTYPE_DATA_DIR": str(tmp_path)}
    shown = {
        one["name"]: one["value"]
        for one in json.loads(in_a_pipe("config", "show", "--json", **changes).stdout)
    }
    assert shown["models.tiny.vae"] == {"path": "nobody/taesd", "revision": 40 * "a"}
    assert shown["models.tiny.config"] is None
    checked = json.loads(in_a_pipe("config", "check", "--json", **changes).stdout)
    assert checked[0]["detail"].endswith(f"1 models, 2 tiers; tiny: vae from 'nobody/taesd' at {40 * 'a'}")


def test_config_show_names_every_setting() -> None:
    shown = {entry["name"] for entry in json.loads(in_a_pipe("config", "show", "--json").stdout)}
    assert {f"CALOTYPE_{name.upper()}" for name in Settings.model_fields} <= shown


@pytest.mark.parametrize("arguments", [("logs", "-n", "50000"), ("logs", "-f", "-n", "50000"), ("openapi",)])
def test_a_reader_that_leaves_ends_the_command_without_a_word(
    data_dir: Path, arguments: tuple[str, ...]
) -> None:
    with subprocess.Popen(
        [*CALOTYPE, *arguments],
        cwd=ROOT,
        env=environment(CALOTYPE_DATA_DIR=str(data_dir)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=120) == EXIT_BROKEN_PIPE


@pytest.fixture
def following(data_dir: Path) -> "Iterator[subprocess.Popen[str]]":
    """`calotype logs -f`, which has told what there was."""
    with subprocess.Popen(
        [*CALOTYPE, "logs", "web", "-f", "--data-dir", str(data_dir)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        assert process.stdout.readline() == " [31mred [0m\n"
        yield process
        process.kill()


def test_logs_are_followed_until_ctrl_c(data_dir: Path, following: "subprocess.Popen[str]") -> None:
    assert following.stdout is not None
    assert following.stderr is not None
    with (data_dir / "logs" / "web.log").open("a") as log:
        log.write("later\n")
    assert following.stdout.readline() == "later\n"
    following.send_signal(signal.SIGINT)
    assert following.wait(timeout=60) == 0
    assert following.stderr.read() == ""


def test_ctrl_c_ends_any_other_command_with_its_code() -> None:
    # The server takes the connection and never answers: the command waits until it is interrupted.
    with socket.create_server(("127.0.0.1", 0)) as server:
        arguments = ["get", "job_1", "--url", f"http://127.0.0.1:{server.getsockname()[1]}"]
        with subprocess.Popen(
            [*CALOTYPE, *arguments, "--api-key", "a"],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            server.settimeout(60)
            connection, _ = server.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                assert process.wait(timeout=60) == EXIT_INTERRUPTED
                assert process.stderr is not None
                assert "Traceback" not in process.stderr.read()


def test_what_env_prints_is_quoted_for_each_shell() -> None:
    value = 'it\'s $HOME `x` "y" \\ *'
    line = ASSIGNMENTS[Shell.SH]("NAME", value)
    for shell in ("sh", "bash"):
        script = f'{line}; printf %s "$NAME"; sh -c \'printf %s "$NAME"\''
        answer = subprocess.run([shell, "-euc", script], capture_output=True, text=True, check=True)
        assert answer.stdout == value * 2
    assert ASSIGNMENTS[Shell.FISH]("NAME", value) == ("set -gx NAME 'it\\'s $HOME `x` \"y\" \\\\ *'")
    assert ASSIGNMENTS[Shell.POWERSHELL]("NAME", value) == "$env:NAME = 'it''s $HOME `x` \"y\" \\ *'"

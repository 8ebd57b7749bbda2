"""S27: the client is a distribution of its own, and draws with a running system from an empty environment."""

import asyncio
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from PIL import Image

from client.calotype import (
    AsyncClient,
    Client,
    ConflictError,
    InvalidRequestError,
    JobParameters,
    NotFoundError,
    UnauthenticatedError,
)
from settings import ROOT
from tests.e2e.conftest import System

README = (ROOT / "client" / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PROMPT = "a red heart on a white background"
SMALL = JobParameters(num_inference_steps=2, width=64, height=64)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip wheel ./client` makes, from a copy: a build must not leave anything here."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "client"
    shutil.copytree(ROOT / "client", copy, ignore=shutil.ignore_patterns("__pycache__"))
    _run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder), str(copy)])
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment in which the wheel alone was installed, with what it needs."""
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder, with_pip=True)
    found = folder / "bin" / "python"
    _run([str(found), "-m", "pip", "install", "--disable-pip-version-check", str(wheel)])
    return found


def _run(command: list[str], **options: object) -> str:
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)  # type: ignore[call-overload]
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return str(answer.stdout)


def test_S27_the_wheel_holds_the_client_its_types_and_its_licence_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        told = message_from_bytes(archive.read(metadata))
        (licence,) = [name for name in names if name.endswith("/LICENSE")]
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
    files = {name for name in names if ".dist-info/" not in name}
    kept = {str(path.relative_to(ROOT / "client")) for path in (ROOT / "client" / "calotype").iterdir()}
    assert files == {name for name in kept if "__pycache__" not in name}
    assert "calotype/py.typed" in files
    assert (told["Name"], told["License-Expression"]) == ("calotype", "Apache-2.0")
    assert [line.partition("<")[0].partition(">")[0] for line in told.get_all("Requires-Dist", [])] == [
        "httpx2"
    ]


def test_S27_an_empty_environment_gets_httpx2_and_what_that_needs_alone(python: Path) -> None:
    listed = json.loads(_run([str(python), "-m", "pip", "list", "--format", "json"]))
    names = {entry["name"].lower().replace("_", "-") for entry in listed}
    expected = {"calotype", "httpx2", "httpcore2", "anyio", "idna", "h11", "truststore", "typing-extensions"}
    assert names - {"pip", "setuptools"} <= expected


def test_S27_a_type_checker_reads_the_installed_client(python: Path, tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(
        "from calotype import Client, Job\n\n"
        "def draw(client: Client) -> Job:\n"
        '    job: Job = client.submit("a", seed=7)\n'
        "    return client.wait(job)\n"
    )
    check = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--python-executable={python}"]
    assert "Success" in _run([*check, "use.py"], cwd=tmp_path)
    (tmp_path / "use.py").write_text('from calotype import Client\n\nClient().submit("a", seed="seven")\n')
    answer = subprocess.run([*check, "use.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert 'argument "seed"' in answer.stdout.lower()


@pytest.mark.parametrize("program", PROGRAMS, ids=["ten lines", "a CSV", "asyncio"])
def test_S27_every_program_of_the_readme_runs_there(
    system: System, python: Path, tmp_path: Path, program: str
) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "CALOTYPE_URL": system.ready["url"],
        "CALOTYPE_API_KEY": system.ready["api_key"],
    }
    out = _run([str(python), "-W", "error", "-c", program], cwd=tmp_path, env=environment)
    if "heart.png" in program:
        name, seed, digest = out.split()
        assert (name, seed) == ("heart.png", "7")
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    elif "results" in program:
        assert [line.split(" ", 2)[1:] for line in out.splitlines()] == [
            ["succeeded", "a red heart"],
            ["succeeded", "a blue star"],
        ]
        assert len(list(tmp_path.glob("job_*-0.png"))) == 2
    else:
        assert [line.split()[1] for line in out.splitlines()] == ["succeeded"] * 2


@pytest.fixture
def client(system: System) -> Client:
    return system.api.client


def test_the_same_key_gives_the_same_job_and_another_request_is_refused(client: Client) -> None:
    first = client.submit(PROMPT, idempotency_key=(key := f"test-{os.urandom(8).hex()}"), **SMALL)
    assert client.submit(PROMPT, idempotency_key=key, **SMALL).id == first.id
    with pytest.raises(InvalidRequestError):
        client.submit("another", idempotency_key=key)


def test_a_job_is_waited_for_downloaded_and_tried_again(client: Client, tmp_path: Path) -> None:
    job = client.submit(
        PROMPT, seed=7, output_format="webp", width=64, height=64, num_inference_steps=2, wait_seconds=60
    )
    job = client.wait(job)
    job.raise_unless_succeeded()
    path = client.download(job, tmp_path)
    assert path.name == f"{job.id}-0.webp"
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("WEBP", (64, 64))
    again = client.wait(client.retry(job))
    assert (again.retry_of, again.images[0].sha256) == (job.id, job.images[0].sha256)
    assert again.created_at is not None
    assert job.created_at is not None
    assert again.created_at > job.created_at
    with pytest.raises(ConflictError):
        client.cancel(job)
    with pytest.raises(NotFoundError):
        client.download(job, tmp_path, index=1)


def test_what_is_wrong_is_told_by_field_and_by_line(client: Client) -> None:
    with pytest.raises(InvalidRequestError) as failed:
        client.submit("", width=63, height=64)
    assert "prompt" in failed.value.errors_by_field
    assert failed.value.request_id
    with pytest.raises(InvalidRequestError) as failed:
        client.csv(b"prompt,width\na,64\nb,100000\n")
    assert {(fault.line, fault.field) for fault in failed.value.errors} == {(3, "width")}


def test_a_key_that_is_nobodys_is_told(system: System) -> None:
    with (
        Client(url=system.ready["url"], api_key="calo_a_b") as client,
        pytest.raises(UnauthenticatedError) as failed,
    ):
        client.tiers()
    assert failed.value.code == "unauthenticated"


def test_pages_of_jobs_hold_each_job_once(client: Client) -> None:
    batch = client.wait_batch(client.csv(b"prompt,num_inference_steps\n" + b"a red heart,1\n" * 7))
    assert (batch.state, batch.num_jobs, batch.percent) == ("succeeded", 7, 100)
    jobs = list(client.jobs(batch_id=batch.id, state=["succeeded", "failed"], page_size=3))
    assert sorted(job.batch_line or 0 for job in jobs) == [2, 3, 4, 5, 6, 7, 8]
    assert client.errors(batch) == []


def test_the_asynchronous_client_draws_many_at_once(system: System) -> None:
    async def draw() -> list[bytes]:
        async with AsyncClient(url=system.ready["url"], api_key=system.ready["api_key"]) as client:
            jobs = await asyncio.gather(
                *(client.submit(PROMPT, seed=n, num_inference_steps=2) for n in range(4))
            )
            ended = await asyncio.gather(*map(client.wait, jobs))
            listed = [job.id async for job in client.jobs(page_size=2)]
            assert {job.id for job in ended} <= set(listed)
            return await asyncio.gather(*map(client.image, ended))

    images = asyncio.run(draw())
    assert len(set(images)) == 4
    assert all(image.startswith(b"\x89PNG") for image in images)

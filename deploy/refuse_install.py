"""The build backend of this folder (PEP 517): it builds nothing and explains what to do instead.

The server runs from its tree or its image (docs/adr/0020-the-server-is-not-installed.md). A wheel would
install top-level packages such as `models`, `client` and `settings`, which collide with other distributions.
"""

import sys
from typing import NoReturn

SENTENCE = (
    "calotype's server is not installed: run it from its checkout by `make install` and `.venv/bin/calotype` "
    "or from its image (docs/howto/deploy-with-compose.md); `pip install ./client` gets the Python client."
)


def _refuse(*_: object) -> NoReturn:
    sys.exit(SENTENCE)


get_requires_for_build_wheel = get_requires_for_build_editable = get_requires_for_build_sdist = _refuse
build_wheel = build_editable = build_sdist = _refuse

"""How a broker behind TLS is verified, for Celery and for our own look into it alike.

kombu connects to `rediss` without verifying anything unless it is told to.
"""

import ssl
from pathlib import Path
from typing import Any


def tls_options(url: str, ca_file: Path | None) -> dict[str, Any]:
    """redis-py's options of a verified connection; none for a URL without TLS."""
    if not url.startswith("rediss://"):
        return {}
    authorities = ca_file or ssl.get_default_verify_paths().cafile
    options: dict[str, Any] = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    return options | ({"ssl_ca_certs": str(authorities)} if authorities else {})

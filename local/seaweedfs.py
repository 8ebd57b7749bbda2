"""The embedded S3 server, SeaweedFS' `weed mini`: its keys, its command line, its readiness probe.

Its master, volume, filer and admin ports would serve any client; mutual TLS with a certificate of their own
closes them (`deploy/seaweedfs_security.toml`).
"""

import hashlib
import hmac
import http.client
import secrets
import signal
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlencode

from local.binaries import weed_program
from local.key_pair import ensure_key_pair
from local.ports import SEAWEEDFS_PORTS, stale_sockets
from local.state import State, write_privately

BUCKET = "calotype"
REGION = "us-east-1"
_PROBE = ".calotype/probe"


class SeaweedFS:
    """One SeaweedFS at the address of the state, with one bucket, an owner and keys for each role."""

    name = "s3"
    stop_signal = signal.SIGTERM
    orphan_signal = signal.SIGTERM
    # About one stop in six hangs on a connection to itself; all accepted data is on disk by then.
    stop_seconds = 4
    user: tuple[int, int] | None = None

    def __init__(self, state: State) -> None:
        self._state = state

    @property
    def url(self) -> str:
        """The S3 endpoint."""
        return f"http://{self._state.host}:{self._state.ports['s3']}"

    @property
    def cwd(self) -> Path:
        """The folder from which it reads `security.toml`."""
        return self._state.subfolder("s3")

    def prepare(self) -> None:
        """Write its identities and its TLS files; remove what an earlier run left behind."""
        pair = self.cwd / "seaweedfs.crt", self.cwd / "seaweedfs.key"
        ensure_key_pair(*pair, name="calotype object store", host=self._state.host)
        # Relative: this folder is its working directory, and TOML would want a path escaped.
        write_privately(self.cwd / "security.toml", self._state.filled("seaweedfs_security.toml", folder="."))
        write_privately(self._identities, self._state.filled("seaweedfs_identity.json"))
        self._data.mkdir(mode=0o700, exist_ok=True)
        # It stores the flags of its last run there and would reuse those that we no longer pass.
        (self._data / "mini.options").unlink(missing_ok=True)
        self.clear_sockets()

    def clear_sockets(self) -> None:
        """Remove the sockets that a kill leaves behind, because they block the next start."""
        for name in SEAWEEDFS_PORTS:
            for path in stale_sockets(self._state.ports[name]):
                path.unlink(missing_ok=True)

    def command(self) -> list[str]:
        """The server's command line; it holds no secret."""
        ports = self._state.ports
        return [
            str(weed_program()),
            "-logtostderr=true",  # otherwise it writes files and fixed links into /tmp
            "mini",
            f"-dir={self._data}",
            f"-ip={self._state.host}",
            f"-ip.bind={self._state.host}",
            f"-s3.port={ports['s3']}",
            f"-master.port={ports['s3_master']}",
            f"-volume.port={ports['s3_volume']}",
            f"-filer.port={ports['s3_filer']}",
            f"-admin.port={ports['s3_admin']}",  # the port listens even when its page is off
            "-volume.id=calotype",  # the default is the port, and data would be lost when the port changes
            # Otherwise it may refuse writes for 15 s after a restart ("warming up"). The numbers of the
            # volumes, which it forgets with this flag, are reported again by the volume server.
            "-master.resumeState=false",
            "-volume.preStopSeconds=0",
            "-master.volumeSizeLimitMB=256",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.telemetry=false",
            "-admin.ui=false",
            "-webdav=false",
            "-disableHttp",
            f"-s3.config={self._identities}",
            f"-bucket={BUCKET}",
        ]

    def environment(self) -> dict[str, str]:
        """Return nothing of the caller's environment: the server would read keys and settings from it."""
        return {"PATH": "/usr/bin:/bin", "HOME": str(self.cwd)}

    def ready(self) -> bool:
        """Whether it returns the object of an earlier run, and stores and returns a new one.

        After a restart it lists buckets some seconds before it can read objects.
        """
        body = secrets.token_hex(8).encode()
        try:
            return (
                self._request("GET")[0] in (200, 404)
                and self._request("PUT", body)[0] == 200
                and self._request("GET") == (200, body)
            )
        except (OSError, http.client.HTTPException):
            return False

    @property
    def _data(self) -> Path:
        return self.cwd / "data"

    @property
    def _identities(self) -> Path:
        return self.cwd / "identities.json"

    def _request(self, method: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._state.host, self._state.ports["s3"], timeout=2)
        try:
            connection.request(method, self._signed(method), body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _signed(self, method: str) -> str:
        """Presign the path of the probe object (AWS signature 4), for which the probe needs no client."""
        now = datetime.now(UTC)
        day, instant = now.strftime("%Y%m%d"), now.strftime("%Y%m%dT%H%M%SZ")
        path, scope = f"/{BUCKET}/{quote(_PROBE)}", f"{day}/{REGION}/s3/aws4_request"
        query = urlencode(
            {
                "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
                "X-Amz-Credential": f"{self._state.secrets['s3_access_key']}/{scope}",
                "X-Amz-Date": instant,
                "X-Amz-Expires": "60",
                "X-Amz-SignedHeaders": "host",
            }
        )
        host = f"host:{self._state.host}:{self._state.ports['s3']}"
        request = "\n".join([method, path, query, host, "", "host", "UNSIGNED-PAYLOAD"])
        text = "\n".join(["AWS4-HMAC-SHA256", instant, scope, hashlib.sha256(request.encode()).hexdigest()])
        key = f"AWS4{self._state.secrets['s3_secret_key']}".encode()
        for part in (day, REGION, "s3", "aws4_request", text):
            key = hmac.digest(key, part.encode(), "sha256")
        return f"{path}?{query}&X-Amz-Signature={key.hex()}"

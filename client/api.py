"""A small client of the REST API: one method a route, errors as `ApiError` with the problem's own words.

Owns retries of what is safe to repeat, and nothing else; it knows only what the API documents.
"""

import ipaddress
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx2

Json = dict[str, Any]
TERMINAL = frozenset({"succeeded", "failed", "canceled", "expired"})
AWAY = frozenset({429, 502, 503, 504})
"""Statuses of a service, or of what stands before it, that may answer in a moment."""
PATIENCE_SECONDS = 60


class ApiError(Exception):
    """The service refused; `problem` is its RFC 9457 body."""

    def __init__(self, status: int, problem: Json) -> None:
        self.status = status
        self.problem = problem
        summary = str(problem.get("detail") or problem.get("title"))
        more = [
            f"{error.get('pointer', error.get('line', ''))}: {error.get('detail', '')}"
            for error in problem.get("errors", [])
            if str(error.get("detail", "")) not in summary  # one error is its own summary
        ]
        super().__init__("; ".join([f"{status} {summary}", *more]))


class Unreachable(Exception):
    """Nothing answers at this address, or something that is no calotype."""


class Api:
    """One account's view of one installation."""

    def __init__(
        self, url: str, api_key: str, *, timeout_seconds: float = 90, ca_file: Path | None = None
    ) -> None:
        """Raises `ValueError` for an address or a key that cannot be sent.

        Trusts the authorities in `ca_file` beside those of the system (`SSL_CERT_FILE`, `SSL_CERT_DIR`), and
        goes through the proxies of the environment, but not to this machine.
        """
        self.url = url.rstrip("/")
        tls = ssl.create_default_context()
        if ca_file is not None:
            tls.load_verify_locations(ca_file)
        if not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("the API key holds characters that no key has")
        try:
            self._http = httpx2.Client(
                base_url=self.url,
                headers={"Authorization": f"Bearer {api_key}"},
                timeout=timeout_seconds,
                verify=tls,
                trust_env=not _is_this_machine(self.url),
            )
        except httpx2.InvalidURL as error:
            raise ValueError(f"{url!r} is not an address: {error}") from error
        # A presigned link carries its own credentials: the key must not travel with it.
        self._links = httpx2.Client(
            timeout=timeout_seconds, verify=tls, trust_env=not _is_this_machine(self.url)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()
        self._links.close()

    def submit(self, request: Json, *, idempotency_key: str | None = None) -> Json:
        """`POST /v1/jobs`: the accepted job."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._json("POST", "/v1/jobs", json=request, headers=headers)

    def job(self, job_id: str, *, wait_seconds: float = 0) -> Json:
        """`GET /v1/jobs/{id}`: the job now, or as soon as it ends within `wait_seconds`."""
        return self._json(
            "GET", f"/v1/jobs/{job_id}", params={"wait": int(wait_seconds)} if wait_seconds else {}
        )

    def watch(self, job_id: str, *, poll_seconds: float = 1) -> Iterator[Json]:
        """The job, now and at every look until it has ended; the last one is its end."""

        def look() -> Json:
            return self.job(job_id, wait_seconds=poll_seconds)

        return self._looks(self.job(job_id), look, lambda job: job["state"] in TERMINAL, poll_seconds)

    def watch_batch(self, batch_id: str, *, poll_seconds: float = 1) -> Iterator[Json]:
        """The batch, now and at every look until all of its jobs have ended; the last one is its end."""

        def look() -> Json:
            return self.batch(batch_id)

        return self._looks(look(), look, lambda batch: batch["state"] != "running", poll_seconds)

    def jobs(self, **filters: str | int) -> Iterator[Json]:
        """`GET /v1/jobs`: every job that matches, page by page."""
        parameters: Json = dict(filters)
        while True:
            page = self._json("GET", "/v1/jobs", params=parameters)
            yield from page["jobs"]
            if not page.get("next_cursor"):
                return
            parameters["cursor"] = page["next_cursor"]

    def cancel(self, job_id: str) -> Json:
        """`DELETE /v1/jobs/{id}`."""
        return self._json("DELETE", f"/v1/jobs/{job_id}")

    def cancel_batch(self, batch_id: str) -> Json:
        """`DELETE /v1/batches/{id}`."""
        return self._json("DELETE", f"/v1/batches/{batch_id}")

    def tiers(self) -> list[Json]:
        """`GET /v1/tiers`."""
        return list(self._json("GET", "/v1/tiers")["tiers"])

    def submit_csv(self, path: Path, *, idempotency_key: str | None = None, **form: str) -> Json:
        """`POST /v1/batches`: the accepted batch; `form` has `delimiter`, `encoding` and the like."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        files = {"file": (path.name, path.read_bytes(), "text/csv")}
        return self._json("POST", "/v1/batches", files=files, data=form, headers=headers)

    def retry_batch(self, batch_id: str, *, idempotency_key: str | None = None) -> Json:
        """`POST /v1/batches/{id}/retry`: the batch that runs again what came to nothing in this one."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._json("POST", f"/v1/batches/{batch_id}/retry", headers=headers)

    def results_csv(self, batch_id: str) -> bytes:
        """`GET /v1/batches/{id}/results.csv`, which can be submitted again."""
        return self._answer("GET", f"/v1/batches/{batch_id}/results.csv").content

    def batch(self, batch_id: str) -> Json:
        """`GET /v1/batches/{id}`."""
        return self._json("GET", f"/v1/batches/{batch_id}")

    def download(self, url: str) -> bytes:
        """The bytes behind a presigned link."""
        try:
            response = self._links.get(url, follow_redirects=False)
        except httpx2.TransportError as error:
            raise Unreachable(_why_unreachable(url.partition("?")[0], error)) from error
        if response.status_code != 200:
            raise ApiError(response.status_code, {"title": "the image link was refused or has expired"})
        return response.content

    def follow(
        self, job_ids: list[str], *, timeout_seconds: float, on_change: Callable[[list[Json]], None]
    ) -> list[Json]:
        """Poll these jobs until all have ended; `on_change` sees them after each round.

        Raises `TimeoutError` naming what has not ended.
        """
        deadline = time.monotonic() + timeout_seconds
        seen: dict[str, Json] = {}
        while True:
            for job_id in job_ids:
                if seen.get(job_id, {}).get("state") not in TERMINAL:
                    seen[job_id] = self.job(job_id)
            found = [seen[job_id] for job_id in job_ids]
            on_change(found)
            unfinished = [job["id"] for job in found if job["state"] not in TERMINAL]
            if not unfinished:
                return found
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(unfinished)} jobs have not ended, {unfinished[0]} among them")
            time.sleep(0.25)

    def _looks(
        self, found: Json, look: Callable[[], Json], has_ended: Callable[[Json], bool], poll_seconds: float
    ) -> Iterator[Json]:
        """Look again and again; a service that restarts meanwhile is waited for, `PATIENCE_SECONDS` long."""
        answered_at = time.monotonic()
        yield found
        while not has_ended(found):
            began_at = time.monotonic()
            try:
                found = look()
            except (Unreachable, ApiError) as error:
                away = isinstance(error, Unreachable) or error.status in AWAY
                if not away or time.monotonic() - answered_at > PATIENCE_SECONDS:
                    raise
            else:
                answered_at = time.monotonic()
                yield found
                if has_ended(found):
                    return
            # A server with too many waiters answers a long poll at once.
            time.sleep(max(0.0, began_at + poll_seconds - time.monotonic()))

    def _answer(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx2.TransportError as error:
            raise Unreachable(_why_unreachable(self.url, error)) from error
        if response.is_error:
            body = _object_in(response)
            raise ApiError(response.status_code, body or {"title": response.reason_phrase})
        return response

    def _json(self, method: str, path: str, **options: Any) -> Json:
        response = self._answer(method, path, **options)
        body = _object_in(response)
        if response.is_success and body is not None:
            return body
        # A page, or a redirect of what stands before it, where the API would answer with an object.
        place = response.headers.get("Location")
        raise Unreachable(
            f"{self.url}: what answers there is no calotype ({response.status_code} {response.reason_phrase}"
            + (f" to {place})" if place else ")")
        )


def _object_in(response: httpx2.Response) -> Json | None:
    try:
        body = response.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _is_this_machine(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name, or no address at all


def _why_unreachable(url: str, error: httpx2.TransportError) -> str:
    if "certificate" not in str(error).lower():
        return f"{url}: {error}"
    return (
        f"{url}: its certificate is not trusted ({error}); if an authority of your own signed it, "
        "name its certificate in CALOTYPE_CA_FILE or SSL_CERT_FILE"
    )

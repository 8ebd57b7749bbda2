"""All errors that the client raises, as one tree; `retryable` says whether the call may succeed later.

CalotypeError
 ├─ ConfigurationError          the address or the key is missing or not valid
 ├─ UnsendableError             a value cannot be sent: field
 ├─ UnreachableError            nothing answers, or the connection was lost
 │   └─ UnexpectedAnswerError   the server there is not calotype
 ├─ ApiError                    the server rejected it: status, code, errors by field, request id
 │   ├─ InvalidRequestError     400, 413, 415, 422
 │   ├─ UnauthenticatedError    401
 │   ├─ NotFoundError           404
 │   ├─ ConflictError           409
 │   ├─ RateLimitError          429
 │   └─ ServerError             5xx
 ├─ JobNotSucceededError        the job has not succeeded
 ├─ WaitTimeoutError            the wait timed out; the job goes on
 ├─ DownloadError               the image did not arrive complete
 ├─ UploadError                 the object store rejected the file
 └─ WebhookError                a webhook is not signed by a known secret, or too old
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .resources import Batch, Job

RETRYABLE_STATUSES = frozenset({429, 502, 503, 504})
"""Statuses of a server, or of a proxy in front of it, that may be gone in a moment."""


class CalotypeError(Exception):
    """Base class. `code` is stable; `retryable` says whether the same call may succeed later."""

    code: str = "calotype_error"
    retryable: bool = False


class ConfigurationError(CalotypeError, ValueError):
    """The address or the API key is missing or not valid."""

    code = "configuration"


class UnsendableError(CalotypeError, ValueError):
    """The value of `field` cannot be sent. Nothing was sent."""

    code = "unsendable"

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(f"{field}: {detail}")
        self.field = field
        self.detail = detail


class UnreachableError(CalotypeError):
    """Nothing answered in time, or the connection was lost before the response."""

    code = "unreachable"

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class UnexpectedAnswerError(UnreachableError):
    """The server at this address is not calotype: it sent a page, a redirect or other JSON."""

    code = "unexpected_answer"

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=False)


@dataclass(frozen=True)
class Fault:
    """One fault of a request: the field and the limit that it breaks. `line` is the line of a CSV."""

    field: str
    detail: str
    line: int | None = None

    def __str__(self) -> str:
        places = [self.field] if self.line is None else [f"line {self.line}", self.field]
        place = ", ".join(filter(None, places))
        return f"{place}: {self.detail}" if place else self.detail


class ApiError(CalotypeError):
    """The server rejected the request; `problem` is the body of its response (RFC 9457)."""

    def __init__(
        self, status: int, problem: Mapping[str, Any], *, retry_after_seconds: float | None = None
    ) -> None:
        self.status = status
        self.problem = dict(problem)
        self.code = str(problem.get("code") or f"http_{status}")
        self.detail = str(problem.get("detail") or problem.get("title") or "")
        self.request_id: str | None = problem.get("request_id") or None
        self.retryable = status in RETRYABLE_STATUSES
        self.retry_after_seconds = retry_after_seconds
        """The value of `Retry-After`, if the server sent one."""
        self.errors = tuple(_faults(problem.get("errors")))
        num_errors = problem.get("num_errors")
        self.num_errors = num_errors if isinstance(num_errors, int) else len(self.errors)
        """The number of faults, of which `errors` holds at most the first hundred."""
        # The summary repeats the first fault; others may be the same mistake in other lines.
        is_told = bool(self.errors) and self.errors[0].detail in self.detail
        more = [str(fault) for fault in self.errors[is_told:]]
        super().__init__("; ".join([f"{status} {self.detail}".strip(), *more]))

    @property
    def errors_by_field(self) -> dict[str, list[str]]:
        """The faults of each field; those without a field have the empty name."""
        found: dict[str, list[str]] = {}
        for fault in self.errors:
            found.setdefault(fault.field, []).append(fault.detail)
        return found


class InvalidRequestError(ApiError):
    """The request is not valid; `errors` names fields and limits."""


class UnauthenticatedError(ApiError):
    """The API key is missing or unknown."""


class NotFoundError(ApiError):
    """The account has nothing with this id."""


class ConflictError(ApiError):
    """The state of the job or batch does not allow this."""


class RateLimitError(ApiError):
    """Too many requests; try again after `retry_after_seconds`."""


class ServerError(ApiError):
    """The server, or a proxy in front of it, failed."""


class JobNotSucceededError(CalotypeError):
    """The job failed, was canceled, expired or has not ended; `job` is the job."""

    def __init__(self, job: "Job") -> None:
        self.job = job
        self.code = job.error.code if job.error else job.state
        self.retryable = job.error.retryable if job.error else False
        why = f": {job.error}" if job.error else ""
        super().__init__(f"job {job.id} is {job.state}{why}")


class WaitTimeoutError(CalotypeError, TimeoutError):
    """The wait timed out; `found` are the jobs or batches that have not ended."""

    code = "wait_timeout"
    retryable = True

    def __init__(self, *found: "Job | Batch") -> None:
        self.found = found
        shown = ", ".join(f"{one.id} ({one.state})" for one in found[:3])
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        super().__init__(f"not ended in time: {shown}{more}")


class DownloadError(CalotypeError):
    """The image did not arrive complete, or its link was rejected."""

    code = "download_failed"
    retryable = True


class UploadError(CalotypeError):
    """The object store rejected the upload of a file."""

    code = "upload_failed"
    retryable = True


class WebhookError(CalotypeError, ValueError):
    """A webhook that must not be trusted; `code` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def api_error(
    status: int, problem: Mapping[str, Any], *, retry_after_seconds: float | None = None
) -> ApiError:
    """The error class for this status."""
    kinds: dict[int, type[ApiError]] = {
        400: InvalidRequestError,
        401: UnauthenticatedError,
        404: NotFoundError,
        409: ConflictError,
        413: InvalidRequestError,
        415: InvalidRequestError,
        422: InvalidRequestError,
        429: RateLimitError,
    }
    kind = kinds.get(status, ServerError if status >= 500 else ApiError)
    return kind(status, problem, retry_after_seconds=retry_after_seconds)


def _faults(found: Any) -> list[Fault]:
    """The readable items of `errors`; `#/` is removed from JSON pointers (RFC 6901)."""
    if not isinstance(found, list):
        return []
    faults = []
    for item in found:
        if isinstance(item, Mapping):
            pointer = str(item.get("pointer") or "").removeprefix("#").removeprefix("/")
            name = item.get("field") or item.get("parameter") or pointer
            line = item.get("line")
            faults.append(
                Fault(str(name), str(item.get("detail", "")), line if isinstance(line, int) else None)
            )
    return faults

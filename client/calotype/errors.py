"""Everything that the client raises, as one tree; each error says whether the same call may succeed later.

CalotypeError
 ├─ ConfigurationError          no address or key, or one that cannot be used
 ├─ UnsendableError             no request can carry this value: field
 ├─ UnreachableError            nothing answers, or the connection was lost
 │   └─ UnexpectedAnswerError   something that is no calotype answers there
 ├─ ApiError                    the server refused: status, code, errors by field, request id
 │   ├─ InvalidRequestError     400, 413, 415, 422
 │   ├─ UnauthenticatedError    401
 │   ├─ NotFoundError           404
 │   ├─ ConflictError           409
 │   ├─ RateLimitError          429
 │   └─ ServerError             5xx
 ├─ JobNotSucceededError        the job ended otherwise, or has not ended
 ├─ WaitTimeoutError            the time to wait is over; the job goes on
 ├─ DownloadError               the image did not arrive whole
 ├─ UploadError                 the store did not take the file
 └─ WebhookError                a message that no secret signed, or too old a one
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .resources import Batch, Job

RETRYABLE_STATUSES = frozenset({429, 502, 503, 504})
"""Statuses of a service, or of a proxy before it, that may answer in a moment."""


class CalotypeError(Exception):
    """Base of the tree: `code` is stable, `retryable` says whether the same call may succeed later."""

    code: str = "calotype_error"
    retryable: bool = False


class ConfigurationError(CalotypeError, ValueError):
    """No address or API key was given, or one that cannot be used."""

    code = "configuration"


class UnsendableError(CalotypeError, ValueError):
    """A value that no request can carry; `field` names it, and nothing was sent."""

    code = "unsendable"

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(f"{field}: {detail}")
        self.field = field
        self.detail = detail


class UnreachableError(CalotypeError):
    """Nothing answers at this address in time, or the connection was lost before the answer."""

    code = "unreachable"

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class UnexpectedAnswerError(UnreachableError):
    """What answers at this address is no calotype: a page, a redirect, JSON of another service."""

    code = "unexpected_answer"

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=False)


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a request: the field, and the limit that it breaks; `line` is of a CSV."""

    field: str
    detail: str
    line: int | None = None

    def __str__(self) -> str:
        places = [self.field] if self.line is None else [f"line {self.line}", self.field]
        place = ", ".join(filter(None, places))
        return f"{place}: {self.detail}" if place else self.detail


class ApiError(CalotypeError):
    """The server refused; `problem` is its RFC 9457 body."""

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
        """What the server asked for by `Retry-After`."""
        self.errors = tuple(_faults(problem.get("errors")))
        num_errors = problem.get("num_errors")
        self.num_errors = num_errors if isinstance(num_errors, int) else len(self.errors)
        """How many faults there are; `errors` holds at most the first hundred."""
        # The first is the summary; others may be the same mistake in other lines.
        is_told = bool(self.errors) and self.errors[0].detail in self.detail
        more = [str(fault) for fault in self.errors[is_told:]]
        super().__init__("; ".join([f"{status} {self.detail}".strip(), *more]))

    @property
    def errors_by_field(self) -> dict[str, list[str]]:
        """What is wrong with each field; without a field of its own it is under the empty name."""
        found: dict[str, list[str]] = {}
        for fault in self.errors:
            found.setdefault(fault.field, []).append(fault.detail)
        return found


class InvalidRequestError(ApiError):
    """The request says something that cannot be done; `errors` name fields and limits."""


class UnauthenticatedError(ApiError):
    """There is no key, or it is nobody's."""


class NotFoundError(ApiError):
    """There is nothing of that name for this key."""


class ConflictError(ApiError):
    """The job or batch is in a state that does not allow it."""


class RateLimitError(ApiError):
    """Too many requests; `retry_after_seconds` says when."""


class ServerError(ApiError):
    """The service, or a proxy before it, failed."""


class JobNotSucceededError(CalotypeError):
    """A job that ended otherwise, or has not ended; `job` is the job."""

    def __init__(self, job: "Job") -> None:
        self.job = job
        self.code = job.error.code if job.error else job.state
        self.retryable = job.error.retryable if job.error else False
        why = f": {job.error}" if job.error else ""
        super().__init__(f"job {job.id} is {job.state}{why}")


class WaitTimeoutError(CalotypeError, TimeoutError):
    """The time to wait is over; `found` are the jobs or batches that go on."""

    code = "wait_timeout"
    retryable = True

    def __init__(self, *found: "Job | Batch") -> None:
        self.found = found
        shown = ", ".join(f"{one.id} ({one.state})" for one in found[:3])
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        super().__init__(f"not ended in time: {shown}{more}")


class DownloadError(CalotypeError):
    """An image did not arrive whole, or its link was refused."""

    code = "download_failed"
    retryable = True


class UploadError(CalotypeError):
    """The store did not take a file under the link for it."""

    code = "upload_failed"
    retryable = True


class WebhookError(CalotypeError, ValueError):
    """A webhook that must not be believed; `code` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def api_error(
    status: int, problem: Mapping[str, Any], *, retry_after_seconds: float | None = None
) -> ApiError:
    """The error of the tree for this status."""
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
    """The items of `errors` that can be read; a JSON pointer (RFC 6901) loses its `#/`."""
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

"""The reasons for refusing a request, as exceptions with an HTTP status and a stable code.

Refusal
 ├─ MalformedBody         400 malformed_body
 ├─ Unauthenticated       401 unauthenticated
 ├─ CrossSite             403 cross_site
 ├─ ImageNotFound         404 image_not_found
 ├─ JobIsNotFinal         409 job_is_not_final
 ├─ NotServed             409 not_served
 ├─ FileNotUploaded       409 file_not_uploaded
 ├─ BodyTooLarge          413 body_too_large
 ├─ UnsupportedMediaType  415 unsupported_media_type
 ├─ InvalidRequest        422 invalid_request
 │   ├─ InvalidCsv        422 invalid_csv
 │   └─ InvalidImage      422 invalid_image
 └─ Busy                  503 busy

Storage has its own errors; `web.problems` turns both into responses.
"""

from collections.abc import Iterable
from dataclasses import dataclass

MAX_ERRORS = 100
MAX_QUOTED_CHARACTERS = 100
MAX_DETAIL_CHARACTERS = 1000


def quoted(text: str) -> str:
    """The beginning of a client's text for a message, in quotes and with control characters escaped."""
    return repr(text[:MAX_QUOTED_CHARACTERS])


@dataclass(frozen=True)
class FieldError:
    """One error: the field, and the limit that it breaks. `line` is a line of a CSV file."""

    field: str
    detail: str
    line: int | None = None
    parameter: bool = False

    def as_json(self) -> dict[str, str | int]:
        """An item of `errors`: a CSV cell, a query parameter or header, or a JSON pointer."""
        if self.line is not None:
            return {"line": self.line, "field": self.field, "detail": self.detail}
        if self.parameter:
            return {"parameter": self.field, "detail": self.detail}
        return {"pointer": f"#/{self.field}" if self.field else "#", "detail": self.detail}


class Refusal(Exception):
    """Base of the tree: `status` is for HTTP, `code` is stable, `errors` name fields and limits.

    `num_errors` counts all errors, of which `errors` may have only the first.
    """

    status = 400
    code = "bad_request"

    def __init__(
        self,
        detail: str,
        errors: Iterable[FieldError] = (),
        *,
        num_errors: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = list(errors)
        self.num_errors = len(self.errors) if num_errors is None else num_errors
        self.headers = headers or {}


class MalformedBody(Refusal):
    """The body cannot be read as the type that it declares."""

    code = "malformed_body"


class Unauthenticated(Refusal):
    """The key is missing, unknown or revoked."""

    status = 401
    code = "unauthenticated"


class CrossSite(Refusal):
    """A page of another site sent one of our forms."""

    status = 403
    code = "cross_site"


class ImageNotFound(Refusal):
    """The job has no such image: not yet, no longer, or never."""

    status = 404
    code = "image_not_found"


class JobIsNotFinal(Refusal):
    """Only jobs that have ended can be retried or erased, and their images deleted."""

    status = 409
    code = "job_is_not_final"


class NotServed(Refusal):
    """An old job needs a model, size or scheduler that is no longer served."""

    status = 409
    code = "not_served"


class FileNotUploaded(Refusal):
    """The upload link of a declared file has no bytes, or other bytes than were declared."""

    status = 409
    code = "file_not_uploaded"


class BodyTooLarge(Refusal):
    """The body is larger than this route accepts."""

    status = 413
    code = "body_too_large"


class UnsupportedMediaType(Refusal):
    """The body has a media type that this route does not accept."""

    status = 415
    code = "unsupported_media_type"


class InvalidRequest(Refusal):
    """The request can be parsed but breaks a limit."""

    status = 422
    code = "invalid_request"

    @classmethod
    def of(cls, errors: list[FieldError]) -> "InvalidRequest":
        """One refusal for all of these errors; its detail is the first one."""
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        place = f"{errors[0].field}: " if errors[0].field else ""
        return cls(f"{place}{errors[0].detail}{more}", errors)


class InvalidCsv(InvalidRequest):
    """The uploaded CSV has errors; `errors` name lines and fields."""

    code = "invalid_csv"


class InvalidImage(InvalidRequest):
    """The file cannot be used as an input image; `errors` name its field and the reason."""

    code = "invalid_image"


class Busy(Refusal):
    """Too many requests are doing the same at once; the client can retry."""

    status = 503
    code = "busy"

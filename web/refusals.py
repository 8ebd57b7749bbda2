"""Every reason for which the web refuses a request, as an exception with its HTTP status and stable code.

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

Storage has errors of its own; `web.errors` turns both kinds into answers.
"""

from collections.abc import Iterable
from dataclasses import dataclass

MAX_ERRORS = 100
MAX_QUOTED_CHARACTERS = 100
MAX_DETAIL_CHARACTERS = 1000


def quoted(text: str) -> str:
    """What a client sent, for a message: its beginning, in quotes and without control characters."""
    return repr(text[:MAX_QUOTED_CHARACTERS])


@dataclass(frozen=True)
class FieldError:
    """One thing that is wrong: which field, and which limit it breaks. `line` is of a CSV file."""

    field: str
    detail: str
    line: int | None = None
    parameter: bool = False

    def as_json(self) -> dict[str, str | int]:
        """As an item of `errors`: a CSV cell, a query parameter or header, or a JSON pointer."""
        if self.line is not None:
            return {"line": self.line, "field": self.field, "detail": self.detail}
        if self.parameter:
            return {"parameter": self.field, "detail": self.detail}
        return {"pointer": f"#/{self.field}" if self.field else "#", "detail": self.detail}


class Refusal(Exception):
    """Base of the tree: `status` is HTTP's, `code` is ours, `errors` name fields and limits.

    `num_errors` is how many were found, where `errors` are the first of them.
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
    """The body cannot be read as what it says it is."""

    code = "malformed_body"


class Unauthenticated(Refusal):
    """There is no key, or it is nobody's."""

    status = 401
    code = "unauthenticated"


class CrossSite(Refusal):
    """Another site's page sent a form of ours."""

    status = 403
    code = "cross_site"


class ImageNotFound(Refusal):
    """The job has no such image: not yet, not any more, or not at all."""

    status = 404
    code = "image_not_found"


class JobIsNotFinal(Refusal):
    """Only what has ended can be tried again."""

    status = 409
    code = "job_is_not_final"


class NotServed(Refusal):
    """An old job asks for a model, a size or a scheduler that is served no more."""

    status = 409
    code = "not_served"


class FileNotUploaded(Refusal):
    """Nothing, or something else than was declared, lies where a file was to be put."""

    status = 409
    code = "file_not_uploaded"


class BodyTooLarge(Refusal):
    """The body is larger than this route takes."""

    status = 413
    code = "body_too_large"


class UnsupportedMediaType(Refusal):
    """The body is of a type that this route does not take."""

    status = 415
    code = "unsupported_media_type"


class InvalidRequest(Refusal):
    """The request can be read, and says something that cannot be done."""

    status = 422
    code = "invalid_request"

    @classmethod
    def of(cls, errors: list[FieldError]) -> "InvalidRequest":
        """One refusal that names every field; its detail is the first of them."""
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        place = f"{errors[0].field}: " if errors[0].field else ""
        return cls(f"{place}{errors[0].detail}{more}", errors)


class InvalidCsv(InvalidRequest):
    """The upload is no CSV that can be run; `errors` name lines and fields."""

    code = "invalid_csv"


class InvalidImage(InvalidRequest):
    """The file is no picture that can be drawn from; `errors` say which field brought it, and why."""

    code = "invalid_image"


class Busy(Refusal):
    """Too many ask for the same at once: try again."""

    status = 503
    code = "busy"

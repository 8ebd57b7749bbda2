"""Reads HTTP responses: JSON, a link, or the `CalotypeError` that they mean. Sends nothing."""

import email.utils
import time
from typing import Any

import httpx2

from .errors import CalotypeError, UnexpectedAnswerError, UnreachableError, api_error


def failure_of(response: httpx2.Response) -> CalotypeError | None:
    """The error that a response of status 400 or above means; None for other responses."""
    if not response.is_error:
        return None
    problem = _json(response)
    if not isinstance(problem, dict):
        problem = {"title": response.reason_phrase}  # the page of a proxy
    return api_error(response.status_code, problem, retry_after_seconds=_retry_after(response))


def failure_of_connection(url: str, error: httpx2.RequestError) -> UnreachableError:
    """The error for a request without a response. Its message names the likely cause."""
    if "certificate" not in str(error).lower():
        return UnreachableError(f"{url}: {str(error) or type(error).__name__}")
    return UnreachableError(
        f"{url}: its certificate is not trusted ({error}); if your own authority signed it, "
        "set its certificate in CALOTYPE_CA_FILE or SSL_CERT_FILE",
        retryable=False,
    )


def json_object(response: httpx2.Response) -> dict[str, Any]:
    """The JSON object of a response. Raises `UnexpectedAnswerError` for anything else."""
    body = _json(response)
    if response.is_success and isinstance(body, dict):
        return body
    raise unexpected(response)


def link_of(response: httpx2.Response) -> str:
    """The absolute URL that a response redirects to."""
    if not response.is_redirect:
        raise unexpected(response)
    return str(response.url.join(response.headers["Location"]))


def unexpected(response: httpx2.Response) -> UnexpectedAnswerError:
    """The error for a page, a redirect or JSON that the API would not send."""
    place = response.headers.get("Location")
    return UnexpectedAnswerError(
        f"{_origin(response)}: the server at this address is not calotype "
        f"({response.status_code} {response.reason_phrase}" + (f" to {place})" if place else ")")
    )


def _origin(response: httpx2.Response) -> str:
    url = response.url
    return f"{url.scheme}://{url.netloc.decode()}"


def _json(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def _retry_after(response: httpx2.Response) -> float | None:
    """`Retry-After` in seconds from now (RFC 9110 section 10.2.3: seconds, or a date)."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None

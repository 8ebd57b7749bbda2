"""From an HTTP answer to its meaning: JSON, a link, or the error of the tree that it stands for. Pure."""

import email.utils
import time
from typing import Any

import httpx2

from .errors import CalotypeError, UnexpectedAnswerError, UnreachableError, api_error


def failure_of(response: httpx2.Response) -> CalotypeError | None:
    """The error that an answer of status 400 and above stands for; None for any other."""
    if not response.is_error:
        return None
    problem = _json(response)
    if not isinstance(problem, dict):
        problem = {"title": response.reason_phrase}  # the page of a proxy
    return api_error(response.status_code, problem, retry_after_seconds=_retry_after(response))


def failure_of_connection(url: str, error: httpx2.RequestError) -> UnreachableError:
    """The error for an answer that never came, in words that lead to the cause."""
    if "certificate" not in str(error).lower():
        return UnreachableError(f"{url}: {str(error) or type(error).__name__}")
    return UnreachableError(
        f"{url}: its certificate is not trusted ({error}); if an authority of your own signed it, "
        "name its certificate in CALOTYPE_CA_FILE or SSL_CERT_FILE",
        retryable=False,
    )


def json_object(response: httpx2.Response) -> dict[str, Any]:
    """The body, where the API answers with an object. Raises `UnexpectedAnswerError` for anything else."""
    body = _json(response)
    if response.is_success and isinstance(body, dict):
        return body
    raise unexpected(response)


def link_of(response: httpx2.Response) -> str:
    """Where the answer redirects to, as an absolute address."""
    if not response.is_redirect:
        raise unexpected(response)
    return str(response.url.join(response.headers["Location"]))


def unexpected(response: httpx2.Response) -> UnexpectedAnswerError:
    """The error for a page, a redirect or foreign JSON where the API would answer otherwise."""
    place = response.headers.get("Location")
    return UnexpectedAnswerError(
        f"{_origin(response)}: what answers there is no calotype "
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

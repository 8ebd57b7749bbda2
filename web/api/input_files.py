"""The input images of requests: the files that a request names, and data URLs that it contains.

Owns how an image inside a request becomes a file of the account. `tasks.images.facts` decides what an image
may be; what a model does with it is not known here.
"""

import base64
import binascii
import re
from collections.abc import Collection, Iterable

from catalogue.parameters import FILES, entries_of, is_file_id
from storage import files
from storage.files import File
from tasks.errors import ImageUnreadable
from web.api.admission import Files
from web.api.file_intake import store
from web.api.parameter_fields import DATA_URL
from web.api.schemas import JobRequest, pointer
from web.refusals import FieldError, InvalidRequest
from web.wiring import wired

_CARRIED = re.compile(
    r"data:image/[a-z0-9.+-]{1,40}(?:;[a-z0-9=._-]{1,60})*;base64,(?P<data>[A-Za-z0-9+/]*={0,2})",
    re.IGNORECASE,
)


def with_files(account_id: str, body: JobRequest) -> tuple[JobRequest, Files]:
    """The request with its data URLs stored as files, and all files that it names.

    Raises `InvalidRequest` naming every image that cannot be read. Nothing is stored if the request breaks
    another limit.
    """
    texts = _texts_in(body)
    carried = {text for text in texts if is_carried(text)}
    known = files_named(account_id, texts)
    if not carried:
        return body, known
    wired().admission.check(body, {**dict.fromkeys(carried), **known})
    stored, errors = _all_stored(account_id, body, carried)
    if errors:
        raise InvalidRequest.of(errors)
    ids = {text: file.id for text, file in stored.items()}
    changed: dict[str, object] = {}
    for name in FILES:
        value = getattr(body, name)
        is_list = isinstance(value, list)
        changed[name] = [ids.get(text, text) for text in value] if is_list else ids.get(value, value)
    return body.model_copy(update=changed), {**known, **{file.id: file for file in stored.values()}}


def is_carried(text: str) -> bool:
    """Whether this is a data URL of an image rather than the id of a file."""
    return text[: len(DATA_URL)].lower() == DATA_URL


def _texts_in(body: JobRequest) -> list[str]:
    return [text for name in FILES for text in entries_of(getattr(body, name))]


def _all_stored(
    account_id: str, body: JobRequest, carried: Collection[str]
) -> tuple[dict[str, File], list[FieldError]]:
    """The stored file of each data URL, and the errors of the others by their place in the request."""
    stored: dict[str, File] = {}
    errors: list[FieldError] = []
    for name in FILES:
        value = getattr(body, name)
        for index, text in enumerate(entries_of(value)):
            if text not in carried or text in stored:
                continue
            try:
                stored[text] = _stored(account_id, text)
            except ValueError as error:
                place = (name, index) if isinstance(value, list) else (name,)
                errors.append(FieldError(pointer(place), str(error)))
    return stored, errors


def files_named(account_id: str, ids: Iterable[object]) -> Files:
    """The account's files of these ids; unknown ids are left out."""
    known = sorted({id for id in ids if isinstance(id, str) and is_file_id(id)})
    return files.found(wired().db, account_id, known) if known else {}


def _stored(account_id: str, url: str) -> File:
    """The stored file of a data URL; raises `ValueError` if it is not valid."""
    carried = _CARRIED.fullmatch(url)
    if carried is None:
        raise ValueError("is not a data URL of a base64-encoded image: data:image/png;base64,...")
    try:
        data = base64.b64decode(carried["data"], validate=True)
    except binascii.Error as error:
        raise ValueError("contains invalid base64") from error
    try:
        return store(account_id, data)
    except ImageUnreadable as error:
        raise ValueError(str(error)) from error

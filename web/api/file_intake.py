"""Accepts a file: checks, stores and records it. Its bytes come with a request or were uploaded to its link.

Owns the order: nothing is stored before it is checked, and no row is ready before its object exists. Callers
know which part of a request had the bytes, and say so in their refusals.
"""

from storage import files
from storage.errors import BlobNotFound
from storage.files import File, NewFile
from tasks.errors import ImageUnreadable
from web.refusals import FileNotUploaded
from web.wiring import wired

STORE_SECONDS = 10.0
"""How long storing is retried, while a client waits for the answer."""


def store(account_id: str, data: bytes) -> File:
    """The account's file of these bytes. Raises `ImageUnreadable`, `Busy`, and `BlobError`."""
    return take_in(account_id, data)[0]


def take_in(account_id: str, data: bytes) -> tuple[File, bool]:
    """The same, and False if the account had the file before; its expiry is then extended."""
    wiring = wired()
    file_id = files.id_of(data)
    kept = files.keep(wiring.db, account_id, file_id, keep_seconds=wiring.file_seconds)
    if kept is not None and _is_there(kept):
        return kept, False
    with wiring.image_checks.room(len(data)):
        facts = wiring.image_checks.facts(data)
        key = files.new_key(account_id, file_id)
        wiring.blobs.put(key, data, content_type=facts.media_type, budget_seconds=STORE_SECONDS)
    if kept is not None:
        return files.move(wiring.db, kept, key), False
    new = NewFile(account_id, file_id, facts.media_type, len(data), key, facts.width, facts.height)
    return files.record(wiring.db, new, keep_seconds=wiring.file_seconds)


def _is_there(file: File) -> bool:
    """Whether its object exists. A lost object is stored again when its bytes are sent again."""
    try:
        return wired().blobs.num_bytes(file.object_key) == file.num_bytes
    except BlobNotFound:
        return False


def take_over(file: File) -> File:
    """The declared file, after its bytes were uploaded to its link: read back and checked.

    Raises `FileNotUploaded` if the bytes are missing or not the declared ones, `ImageUnreadable` and `Busy`.
    """
    wiring = wired()
    try:
        num_bytes = wiring.blobs.num_bytes(file.object_key)
    except BlobNotFound as error:
        raise FileNotUploaded("nothing has been uploaded to the link yet") from error
    if num_bytes != file.num_bytes:
        raise FileNotUploaded(f"{num_bytes} bytes were uploaded to the link, {file.num_bytes} were declared")
    with wiring.image_checks.room(num_bytes):
        data = wiring.blobs.get(file.object_key)
        if files.id_of(data) != file.id:
            raise FileNotUploaded(
                "the bytes at the link are not those that were declared: the SHA-256 differs"
            )
        facts = wiring.image_checks.facts(data)
    if facts.media_type != file.media_type:
        raise ImageUnreadable(f"is {facts.media_type} but was declared as {file.media_type}")
    return files.complete(
        wiring.db, file, width=facts.width, height=facts.height, keep_seconds=wiring.file_seconds
    )

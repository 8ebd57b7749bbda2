"""A file on its way in: looked at, put into the store, recorded. Its bytes came with a request, or are there.

Owns the order: nothing is stored that was not looked at, and no row is ready whose object is not there. Which
part of a request brought the bytes its callers know, and say in their refusals.
"""

from storage import files
from storage.errors import BlobNotFound
from storage.files import File, NewFile
from tasks.images.facts import ImageUnreadable
from web.refusals import FileNotUploaded
from web.wiring import wired

STORE_SECONDS = 10.0
"""How long the store is tried: a client waits for the answer."""


def store(account_id: str, data: bytes) -> File:
    """The account's file of these bytes. Raises `ImageUnreadable`, `Busy`, and what the store raises."""
    return take_in(account_id, data)[0]


def take_in(account_id: str, data: bytes) -> tuple[File, bool]:
    """The same; False if the account had the file before, which then has its whole time again."""
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
    """Whether its object still is; one that was lost is mended by sending its bytes again."""
    try:
        return wired().blobs.num_bytes(file.object_key) == file.num_bytes
    except BlobNotFound:
        return False


def take_over(file: File) -> File:
    """The declared file once its bytes were put under its link: read back and looked at.

    Raises `FileNotUploaded` while they are not there or are others, `ImageUnreadable` and `Busy`.
    """
    wiring = wired()
    try:
        num_bytes = wiring.blobs.num_bytes(file.object_key)
    except BlobNotFound as error:
        raise FileNotUploaded("nothing has been put under the link yet") from error
    if num_bytes != file.num_bytes:
        raise FileNotUploaded(f"{num_bytes} bytes were put under the link, {file.num_bytes} were declared")
    with wiring.image_checks.room(num_bytes):
        data = wiring.blobs.get(file.object_key)
        if files.id_of(data) != file.id:
            raise FileNotUploaded(
                "other bytes were put under the link than were declared: the SHA-256 differs"
            )
        facts = wiring.image_checks.facts(data)
    if facts.media_type != file.media_type:
        raise ImageUnreadable(f"is {facts.media_type}, and was declared as {file.media_type}")
    return files.complete(
        wiring.db, file, width=facts.width, height=facts.height, keep_seconds=wiring.file_seconds
    )

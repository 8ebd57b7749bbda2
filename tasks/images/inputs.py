"""The input images of a claimed job: its files, fetched from the store and decoded for the engine.

Owns the way from ids to pixels. What an image may be is `tasks.images.facts`'; what is drawn from it is the
engine's.
"""

from collections.abc import Mapping

from catalogue.parameters import FILES, entries_of
from storage import files
from storage.blobs import Blobs
from storage.database import Database
from storage.errors import BlobDamaged, BlobNotFound, FileGone
from storage.job_views import Job
from tasks.images.facts import ImageUnreadable
from tasks.images.pixels import Pixels, mask_pixels, pixels


class InputMissing(Exception):
    """A file that the job names is there no more, or is no image: no other try can help."""

    code = "input_missing"
    retryable = False


def inputs_of(db: Database, blobs: Blobs, job: Job) -> Mapping[str, tuple[Pixels, ...]]:
    """The images that the job names, by parameter: RGB `(H, W, 3)`, a mask `(H, W)`, both uint8.

    Raises `InputMissing`, and `BlobUnavailable` where the store does not answer.
    """
    ids = job.parameters.file_ids
    if not ids:
        return {}
    try:
        data = files.read(db, blobs, job.account_id, ids)
    except FileGone as error:
        raise InputMissing(str(error)) from error
    except (BlobDamaged, BlobNotFound) as error:  # its words hold the object's key
        what = "is damaged" if isinstance(error, BlobDamaged) else "is lost"
        raise InputMissing(f"of {' and '.join(ids)} an object {what}: upload it again") from error
    return {
        name: tuple(_decoded(name, id, data[id]) for id in named)
        for name in FILES
        if (named := entries_of(getattr(job.parameters, name)))
    }


def _decoded(name: str, id: str, data: bytes) -> Pixels:
    try:
        return mask_pixels(data) if name == "mask_image" else pixels(data)
    except ImageUnreadable as error:
        raise InputMissing(f"{name}: the file {id} cannot be read: {error}") from error

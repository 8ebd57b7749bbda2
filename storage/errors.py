"""Every error that storage raises.

StorageError
 ├─ Unavailable           database_unavailable      retryable
 ├─ NotFound              not_found
 ├─ IdempotencyMismatch   idempotency_key_reused
 ├─ JobIsFinal            job_is_final
 ├─ DeliveryIsPending     delivery_is_pending
 ├─ FileInUse             file_in_use
 ├─ FileGone              file_gone
 ├─ RolesNotSet           roles_not_set
 └─ BlobError             blob_error
     ├─ BlobUnavailable   storage_unavailable       retryable
     │   └─ BlobRefused   storage_refused           retryable
     ├─ BlobNotFound      blob_not_found
     ├─ BlobConflict      blob_conflict
     └─ BlobDamaged       blob_damaged
"""

from collections.abc import Iterable


class StorageError(Exception):
    """Base of the tree; `code` is stable and public, `retryable` says whether trying again can help."""

    code = "storage_error"
    retryable = False


class Unavailable(StorageError):
    """Postgres cannot be reached, or gave up in the middle."""

    code = "database_unavailable"
    retryable = True


class NotFound(StorageError):
    """There is no such row for this account; another account's row looks just the same."""

    code = "not_found"


class IdempotencyMismatch(StorageError):
    """The idempotency key was used before with another request."""

    code = "idempotency_key_reused"


class JobIsFinal(StorageError):
    """The job or batch has ended, and what has ended never changes."""

    code = "job_is_final"


class DeliveryIsPending(StorageError):
    """The webhook delivery has not ended: it will be sent without being asked for again."""

    code = "delivery_is_pending"


class FileInUse(StorageError):
    """A job that has not ended names the file."""

    code = "file_in_use"


class FileGone(StorageError):
    """A file that a job names is not there: never, not any more, or not whole yet; `file_ids` are those."""

    code = "file_gone"

    def __init__(self, file_ids: Iterable[str]) -> None:
        self.file_ids = sorted(file_ids)
        super().__init__(f"there is no file {', '.join(self.file_ids)} any more: upload it again")


class RolesNotSet(StorageError):
    """The database's roles and users cannot be made as they must be; the message says by what they can."""

    code = "roles_not_set"


class BlobError(StorageError):
    """The object store refused."""

    code = "blob_error"


class BlobUnavailable(BlobError):
    """The object store cannot be reached, or failed on its side, within the upload budget."""

    code = "storage_unavailable"
    retryable = True


class BlobRefused(BlobUnavailable):
    """The object store refuses this installation: its key, its clock, its bucket, or what it asks for.

    Retryable, since an administrator can mend it while the job waits.
    """

    code = "storage_refused"

    def __init__(self, detail: str, *, reason: str) -> None:
        super().__init__(detail)
        self.reason = reason  # the store's own code, such as `InvalidAccessKeyId`


class BlobNotFound(BlobError):
    """Nothing lies under this key."""

    code = "blob_not_found"


class BlobConflict(BlobError):
    """Another object holds this key: the key is not ours."""

    code = "blob_conflict"


class BlobDamaged(BlobError):
    """What lies under this key is not what was put there."""

    code = "blob_damaged"

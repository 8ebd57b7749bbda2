"""Every error that storage raises.

StorageError
 ├─ Unavailable           database_unavailable      retryable
 ├─ NotFound              not_found
 ├─ IdempotencyMismatch   idempotency_key_reused
 ├─ JobIsFinal            job_is_final
 ├─ JobErased             job_erased
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
    """Base of the tree; `code` is stable and public, `retryable` says whether a retry can succeed."""

    code = "storage_error"
    retryable = False


class Unavailable(StorageError):
    """Postgres cannot be reached, or failed during a transaction."""

    code = "database_unavailable"
    retryable = True


class NotFound(StorageError):
    """This account has no such row; the error is the same for another account's row."""

    code = "not_found"


class IdempotencyMismatch(StorageError):
    """The idempotency key was used before with another request."""

    code = "idempotency_key_reused"


class JobIsFinal(StorageError):
    """The job or batch has ended and cannot be changed."""

    code = "job_is_final"


class JobErased(StorageError):
    """The job that this idempotency key created was erased; the key creates no other."""

    code = "job_erased"


class DeliveryIsPending(StorageError):
    """The webhook delivery has not ended: it will be sent anyway."""

    code = "delivery_is_pending"


class FileInUse(StorageError):
    """A job that has not ended uses the file."""

    code = "file_in_use"


class FileGone(StorageError):
    """Files that a job names do not exist, were deleted or are not fully uploaded; see `file_ids`."""

    code = "file_gone"

    def __init__(self, file_ids: Iterable[str]) -> None:
        self.file_ids = sorted(file_ids)
        super().__init__(f"there is no file {', '.join(self.file_ids)} any more: upload it again")


class RolesNotSet(StorageError):
    """The database roles and users cannot be created; the message says what an administrator must run."""

    code = "roles_not_set"


class BlobError(StorageError):
    """A request to the object store failed."""

    code = "blob_error"


class BlobUnavailable(BlobError):
    """The object store cannot be reached, or failed on its side, within the upload budget."""

    code = "storage_unavailable"
    retryable = True


class BlobRefused(BlobUnavailable):
    """The object store rejects a request because of our key, clock or bucket, or does not support it.

    Retryable, since an administrator can fix it while the job waits.
    """

    code = "storage_refused"

    def __init__(self, detail: str, *, reason: str) -> None:
        super().__init__(detail)
        self.reason = reason  # the store's own code, such as `InvalidAccessKeyId`


class BlobNotFound(BlobError):
    """There is no object with this key."""

    code = "blob_not_found"


class BlobConflict(BlobError):
    """A different object has this key already."""

    code = "blob_conflict"


class BlobDamaged(BlobError):
    """The object with this key does not have the content that was written."""

    code = "blob_damaged"

"""Every error that storage raises.

StorageError
 ├─ Unavailable           database_unavailable      retryable
 ├─ NotFound              not_found
 ├─ IdempotencyMismatch   idempotency_key_reused
 ├─ JobIsFinal            job_is_final
 ├─ DeliveryIsPending     delivery_is_pending
 ├─ RolesNotSet           roles_not_set
 └─ BlobError             blob_error
     ├─ BlobUnavailable   storage_unavailable       retryable
     │   └─ BlobRefused   storage_refused           retryable
     ├─ BlobNotFound      blob_not_found
     └─ BlobConflict      blob_conflict
"""


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

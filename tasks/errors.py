"""Every error that tasks raise by themselves.

TaskError
 ├─ BrokerDown          broker_unavailable     retryable
 ├─ TaskNotReceived     task_not_received      retryable
 ├─ InputMissing        input_missing
 ├─ ImageUnreadable     invalid_image          (a ValueError too)
 ├─ DownloadFailed      download_failed        retryable
 ├─ OutboundError       connection_failed      retryable
 │   ├─ AddressRefused  address_refused
 │   ├─ PortRefused     port_refused
 │   ├─ NameNotFound    name_not_found         retryable
 │   ├─ TlsFailed       tls_failed             retryable
 │   └─ HeaderTooLarge  answer_malformed       retryable
 └─ NotIsolated         database_unavailable   retryable    (in `tasks.isolation`; an EngineStopped too)

It imports nothing: the API and the sweeper run without the engine.
"""

from typing import ClassVar


class TaskError(Exception):
    """Base of the tree; `code` is stable, `retryable` says whether the same attempt can succeed later."""

    code: ClassVar[str] = "task_error"
    retryable: ClassVar[bool] = False


class BrokerDown(TaskError):
    """The broker does not answer."""

    code = "broker_unavailable"
    retryable = True


class TaskNotReceived(TaskError):
    """This process' Celery worker did not accept a task, so it will not run."""

    code = "task_not_received"
    retryable = True


class InputMissing(TaskError):
    """An input file of a job was deleted, is lost or damaged, or is not an image."""

    code = "input_missing"


class ImageUnreadable(TaskError, ValueError):
    """The file is not a usable image; the message completes the sentence "the file ..."."""

    code = "invalid_image"


class DownloadFailed(TaskError):
    """The image was not downloaded; the message gives the reason and reveals nothing of the local network."""

    code = "download_failed"
    retryable = True


class OutboundError(TaskError):
    """A connection to a server that an account chose was refused or failed."""

    code = "connection_failed"
    retryable = True


class AddressRefused(OutboundError):
    """The host resolves to an address that requests are not sent to."""

    code = "address_refused"
    retryable = False


class PortRefused(OutboundError):
    """The URL names a port that requests are not sent to."""

    code = "port_refused"
    retryable = False


class NameNotFound(OutboundError):
    """The host has no address."""

    code = "name_not_found"


class TlsFailed(OutboundError):
    """The TLS handshake failed, most often because of the certificate."""

    code = "tls_failed"


class HeaderTooLarge(OutboundError):
    """The response header is larger than the limit."""

    code = "answer_malformed"

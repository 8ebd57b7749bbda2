"""The Python client of calotype, a self-hosted text-to-image service.

from calotype import Client

with Client() as client:  # CALOTYPE_URL and CALOTYPE_API_KEY
    job = client.wait(client.submit("a red heart on a white background"))
    client.download(job, "heart.png")
"""

__version__ = "0.1.0"

from .async_client import AsyncClient
from .client import Client
from .errors import (
    ApiError,
    CalotypeError,
    ConfigurationError,
    ConflictError,
    DownloadError,
    Fault,
    InvalidRequestError,
    JobNotSucceededError,
    NotFoundError,
    RateLimitError,
    ServerError,
    UnauthenticatedError,
    UnexpectedAnswerError,
    UnreachableError,
    UnsendableError,
    UploadError,
    WaitTimeoutError,
    WebhookError,
)
from .resources import (
    TERMINAL_STATES,
    Batch,
    Cost,
    File,
    Image,
    Job,
    JobError,
    JobParameters,
    JobWarning,
    Model,
    Tier,
    Usage,
    UsageReport,
    WaitingReason,
)
from .webhooks import WebhookEvent, verify_webhook

__all__ = [
    "TERMINAL_STATES",
    "ApiError",
    "AsyncClient",
    "Batch",
    "CalotypeError",
    "Client",
    "ConfigurationError",
    "ConflictError",
    "Cost",
    "DownloadError",
    "Fault",
    "File",
    "Image",
    "InvalidRequestError",
    "Job",
    "JobError",
    "JobNotSucceededError",
    "JobParameters",
    "JobWarning",
    "Model",
    "NotFoundError",
    "RateLimitError",
    "ServerError",
    "Tier",
    "UnauthenticatedError",
    "UnexpectedAnswerError",
    "UnreachableError",
    "UnsendableError",
    "UploadError",
    "Usage",
    "UsageReport",
    "WaitTimeoutError",
    "WaitingReason",
    "WebhookError",
    "WebhookEvent",
    "__version__",
    "verify_webhook",
]

"""Warnings: the parts of a request that were not followed, although its job succeeded.

The engine and storage write them; the API and webhooks show them.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import WithJsonSchema

WarningCode = Literal[
    "prompt_cut",
    "notation_unread",
    "negative_prompt_unused",
    "not_batched",
    "lora_partial",
    "webhook_receiver_paused",
]
"""Codes keep their meaning; docs/reference/api.md lists them. A later version may add some."""


@dataclass(frozen=True)
class RequestWarning:
    """What was not done as requested; the images exist nevertheless."""

    code: Annotated[WarningCode, WithJsonSchema({"type": "string"})]
    field: Annotated[
        str, WithJsonSchema({"type": "string", "description": "The field of the request that it is about."})
    ]
    detail: str

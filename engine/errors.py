"""The engine's exceptions, as one tree; each class says with `retryable` whether to try again.

    EngineError                 engine_error         retryable
    ├── LoadError               model_not_loadable   final
    ├── RequestInvalid          invalid_request      final       (a ValueError too)
    │   └── PromptInvalid       invalid_prompt       final
    ├── LoraUnusable            lora_unusable        final
    ├── Canceled                canceled             final
    ├── DeadlineExceeded        deadline_exceeded    final
    ├── NumericError            numeric_error        final
    ├── StrictUnavailable       strict_unavailable   retryable   (elsewhere, perhaps)
    ├── GenerationFailed        generation_failed    retryable
    │   └── GenerationImpossible generation_impossible final
    ├── OutOfMemory             out_of_memory        retryable
    ├── EngineStopped           engine_stopped       retryable
    └── DeviceLost              device_lost          retryable   (the process must end)

The first line of a class's docstring is its default message. This module does not import torch:
`engine.device_work` translates torch's exceptions into these. Tracebacks are logged with `places_of`.
"""

import traceback
from typing import ClassVar


class EngineError(Exception):
    """The engine failed in an unexpected way."""

    code: ClassVar[str] = "engine_error"
    retryable: ClassVar[bool] = True

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").partition("\n")[0])


class LoadError(EngineError):
    """The model could not be loaded."""

    code = "model_not_loadable"
    retryable = False


class RequestInvalid(EngineError, ValueError):
    """The request asks for something that this engine cannot do."""

    code = "invalid_request"
    retryable = False


class PromptInvalid(RequestInvalid):
    """The prompt is not text that a tokenizer can read."""

    code = "invalid_prompt"


class LoraUnusable(EngineError):
    """The adapter cannot be read, or it is for another model."""

    code = "lora_unusable"
    retryable = False


class Canceled(EngineError):
    """The generation was canceled."""

    code = "canceled"
    retryable = False


class DeadlineExceeded(EngineError):
    """The deadline passed before the image was ready."""

    code = "deadline_exceeded"
    retryable = False


class NumericError(EngineError):
    """The latents are no longer finite numbers; the same request would end the same way."""

    code = "numeric_error"
    retryable = False


class StrictUnavailable(EngineError):
    """strict: this device computes different numbers for equal requests, so none can be strict."""

    code = "strict_unavailable"


class GenerationFailed(EngineError):
    """The model failed on this generation when it ran alone."""

    code = "generation_failed"


class GenerationImpossible(GenerationFailed):
    """The model cannot draw this request; the same request would end the same way."""

    code = "generation_impossible"
    retryable = False


class OutOfMemory(EngineError):
    """The generation does not fit into the device's memory, even alone."""

    code = "out_of_memory"


class EngineStopped(EngineError):
    """The engine is stopping and takes no more work."""

    code = "engine_stopped"


class DeviceLost(EngineError):
    """The device can no longer be used by this process."""

    code = "device_lost"


def places_of(error: BaseException) -> str:
    """Format the traceback of `error` and its causes, the first cause first, without their messages.

    Libraries quote their arguments in messages, and these may hold a prompt, which must not reach a log.
    """
    parts: list[str] = []
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        name = f"{type(one).__module__}.{type(one).__qualname__}".removeprefix("builtins.")
        parts.insert(0, "".join(traceback.format_tb(one.__traceback__)) + name)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return "\n\nand then:\n".join(parts)

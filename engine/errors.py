"""What can go wrong in the engine, as one tree; whether to try again is a property of the class.

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

The first line of a docstring is the default message. This module does not know torch: the runner
translates torch's exceptions into these.
"""

from typing import ClassVar


class EngineError(Exception):
    """The engine failed in a way that it did not estimate_of."""

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
    """The adapter cannot be read, or is for another model."""

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
    """strict: this device does not give the same numbers twice, so no promise can be kept on it."""

    code = "strict_unavailable"


class GenerationFailed(EngineError):
    """The model failed on this generation when it ran alone."""

    code = "generation_failed"


class GenerationImpossible(GenerationFailed):
    """The model cannot draw this request; the same request would end the same way."""

    code = "generation_impossible"
    retryable = False


class OutOfMemory(EngineError):
    """This generation does not fit into the device's memory, even alone."""

    code = "out_of_memory"


class EngineStopped(EngineError):
    """The engine is stopping and takes no more work."""

    code = "engine_stopped"


class DeviceLost(EngineError):
    """The device can no longer be used by this process."""

    code = "device_lost"

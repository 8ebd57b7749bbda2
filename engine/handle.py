"""What the caller of `Engine.submit` holds: the future, the progress and the way to cancel."""

from collections.abc import Callable
from concurrent.futures import Future

from engine.generation import Generation
from engine.request import GeneratedImage


class Handle:
    """A submitted request, as its caller sees it; all of it may be used from any thread."""

    def __init__(self, generation: Generation, wake: Callable[[], None]) -> None:
        self._generation = generation
        self._wake = wake

    @property
    def future(self) -> Future[GeneratedImage]:
        """The image to come, or the `EngineError` that came instead."""
        return self._generation.future

    @property
    def progress(self) -> float:
        """Steps done over steps, 0..1."""
        return self._generation.step_index / self._generation.num_steps

    def cancel(self) -> None:
        """End it with `Canceled` at the next step boundary; without effect once it has its image."""
        self._generation.is_cancel_requested = True
        self._wake()

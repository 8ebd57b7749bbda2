"""A worker that draws nothing: all of a worker but the model's work, so that only the job plane is left.

`python -m bench.plane.null` composes `tasks.worker` with an engine whose future is resolved before `submit`
returns, and with `--no-upload` with an object store that keeps nothing.

The model is loaded and tested as in any worker: profiles, slots and heartbeat are those of a real one.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from bench.plane.picture import PIXELS
from engine.engine import Engine
from engine.request import GeneratedImage, GenerationRequest, Timings
from logs import configure_logs
from settings import load_settings
from storage.blobs import Blobs, Stored
from tasks.worker import WorkerOptions, WorkerParts, run_worker

NO_TIME = Timings(0.0, 0.0, 0.0, 0.0, 1, 0.0)


class Drawn:
    """The handle to an image that is there already."""

    progress = 1.0

    def __init__(self, image: GeneratedImage) -> None:
        self.future: Future[GeneratedImage] = Future()
        self.future.set_result(image)

    def cancel(self) -> None:
        """There is nothing to stop."""


class NullEngine(Engine):
    """An engine that is always idle; every request gets the same picture at once."""

    def submit(
        self,
        request: GenerationRequest,
        *,
        on_progress: Callable[[int, int], None] | None = None,  # noqa: ARG002
        before_first_step: Callable[[], object] | None = None,
    ) -> Any:
        """Return a handle to the picture."""
        if before_first_step is not None:
            before_first_step()
        return Drawn(GeneratedImage(PIXELS, (), NO_TIME, 1.0, {}, request.num_inference_steps))


class NullBlobs(Blobs):
    """An object store that takes everything at once and keeps nothing."""

    def put(self, key: str, data: bytes, *, content_type: str, budget_seconds: float) -> Stored:  # noqa: ARG002
        """Return what `Blobs.put` returns, and store nothing."""
        return Stored(key, hashlib.sha256(data).hexdigest(), len(data))


def main() -> None:
    """Serve the tiers until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ready-file", type=Path, required=True)
    parser.add_argument("--tiers", nargs="+", required=True)
    parser.add_argument("--slots", type=int, required=True, help="of each lane")
    parser.add_argument("--no-upload", action="store_true")
    asked = parser.parse_args()
    settings = load_settings()
    configure_logs(settings.log_level, settings.log_format)
    options = WorkerOptions(
        device="cpu:0",
        tiers=tuple(asked.tiers),
        interactive_slots=asked.slots,
        bulk_slots=asked.slots,
        num_threads=1,
        ready_file=asked.ready_file,
    )
    blobs = NullBlobs if asked.no_upload else Blobs
    sys.exit(run_worker(settings, options, WorkerParts(engine=NullEngine, blobs=blobs)))


if __name__ == "__main__":
    main()

"""BentoML with adaptive batching, as its documentation shows it: two workers, each with its own dispatcher.

Run by `bentoml serve bench.peers.with_bentoml:TextToImage`.
https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html
"""

from base64 import b64encode
from typing import Any

import bentoml

from bench.peers.drawing import Drawing, max_batch, wait_seconds

NUM_WORKERS = 2
MAX_SECONDS = 600


@bentoml.service(
    workers=NUM_WORKERS, traffic={"timeout": MAX_SECONDS, "max_concurrency": 1000}, resources={"cpu": "2"}
)
class TextToImage:
    """Draws a batch when the dispatcher's estimate says so; above `max_latency_ms` it would refuse."""

    def __init__(self) -> None:
        self._drawing = Drawing()

    @bentoml.api(
        batchable=True, max_batch_size=max_batch(), max_latency_ms=int(1000 * wait_seconds()), route="/draw"
    )
    def draw(self, requests: list[dict[str, Any]]) -> list[str]:
        """Draw a batch: PNG files in base64, since a batch is answered as a list in JSON."""
        return [b64encode(file).decode() for file in self._drawing.draw(requests)]

"""Ray Serve with `@serve.batch`, as its documentation shows it: two replicas of one CPU each.

The pipeline runs in a thread, so that a replica's event loop goes on receiving the next batch.
https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html
"""

import asyncio
import os
from typing import Any

import ray
from ray import serve
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from bench.peers.drawing import Drawing, Request, max_batch, port, wait_seconds

NUM_REPLICAS = 2
MAX_ONGOING_REQUESTS = 1000
"""Of a replica: high enough that none is refused or held back."""


@serve.deployment(
    num_replicas=NUM_REPLICAS,
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    ray_actor_options={"num_cpus": 1},
)
class TextToImage:
    """Draws a batch as soon as it is full, or its first request has waited."""

    def __init__(self) -> None:
        self._drawing = Drawing()

    @serve.batch(max_batch_size=max_batch(), batch_wait_timeout_s=wait_seconds())
    async def draw(self, requests: list[Request]) -> list[bytes]:
        """Draw a batch."""
        return await asyncio.to_thread(self._drawing.draw, requests)

    async def __call__(self, request: HttpRequest) -> Response:
        """Answer with the file."""
        return Response(await self.draw(await request.json()), media_type="image/png")


def main() -> None:
    """Serve until the process is stopped."""
    ray.init(
        num_cpus=NUM_REPLICAS,
        include_dashboard=False,
        object_store_memory=256 * 1024**2,
        _temp_dir=os.environ["PEER_FOLDER"],
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port()})
    deployment: Any = TextToImage
    serve.run(deployment.bind(), blocking=True)


if __name__ == "__main__":
    main()

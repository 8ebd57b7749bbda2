"""LitServe as its documentation shows it: `predict` on batches, two workers on the CPU.

https://lightning.ai/docs/litserve/features/batching
"""

from collections.abc import Sequence
from typing import Any

import litserve
from fastapi import Response

from bench.peers.drawing import Drawing, Request, max_batch, port, wait_seconds

NUM_WORKERS = 2


class TextToImage(litserve.LitAPI):
    """Draws a batch as soon as it is full, or its first request has waited."""

    def setup(self, device: str) -> None:  # noqa: ARG002  it is the CPU
        """Load the model, in each worker."""
        self._drawing = Drawing()

    def decode_request(self, request: dict[str, Any]) -> Request:
        """Take the JSON as it is."""
        return request

    def batch(self, inputs: Sequence[Request]) -> Sequence[Request]:
        """Keep a list: the pipeline takes its own shape."""
        return list(inputs)

    def predict(self, x: Any) -> Any:
        """Draw a batch, or with `max_batch_size` 1 a single request."""
        return self._drawing.draw(x) if isinstance(x, list) else self._drawing.draw([x])[0]

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """A file each."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """Answer with the file."""
        return Response(content=output, media_type="image/png")


def main() -> None:
    """Serve until the process is stopped; no request is refused for having waited."""
    api = TextToImage(max_batch_size=max_batch(), batch_timeout=wait_seconds())
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=NUM_WORKERS, timeout=False, restart_workers=True
    )
    server.run(host="127.0.0.1", port=port(), generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()

"""Flask's request as this API reads it: JSON strictly, uploads in memory, compressed bodies as plain ones."""

import io
from typing import IO, Any

from flask import Request
from werkzeug.utils import cached_property

from web.api.content_coding import coding_of, decoded
from web.api.json_body import parse_object, read_json_bytes


class ApiRequest(Request):
    """The request class of the application."""

    def get_json(self, force: bool = False, silent: bool = False, cache: bool = True) -> Any:  # noqa: ARG002
        """The body as a JSON object; raises a `Refusal`. flask-openapi asks for it, silently in vain."""
        if not hasattr(self, "_json_object"):
            self._json_object = parse_object(read_json_bytes(self))
        return self._json_object

    @cached_property
    def stream(self) -> IO[bytes]:
        """The plain body, from which werkzeug reads data and forms; raises a `Refusal`."""
        coding = coding_of(self.headers.get("Content-Encoding"))
        sent: IO[bytes] = super().stream
        if coding is None:
            return sent
        assert self.max_content_length is not None  # `web.app` sets it
        return io.BytesIO(decoded(sent.read(), coding, self.max_content_length))

    def _get_file_stream(
        self,
        total_content_length: int | None,  # noqa: ARG002
        content_type: str | None,  # noqa: ARG002
        filename: str | None = None,  # noqa: ARG002
        content_length: int | None = None,  # noqa: ARG002
    ) -> IO[bytes]:
        # An upload is bounded and read whole; a file on disk would outlive a connection that breaks.
        return io.BytesIO()

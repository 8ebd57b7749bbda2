"""Addresses for clients: links of this API, and presigned links to the object store.

Made once per request by `web.wiring`, which knows how the client reached this server. It is passed to the
pure functions of `web.api.resources`, so that they need no request.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from storage.blobs import Blobs
from storage.files import File
from storage.job_views import Job, StoredImage


@dataclass(frozen=True)
class Addresses:
    """`base` is this server's address without a trailing slash; presigned links expire after `seconds`."""

    base: str
    blobs: Blobs
    seconds: int

    def of(self, path: str) -> str:
        """The absolute address of a path of this server."""
        return self.base + path

    def of_image(self, job_id: str, index: int) -> str:
        """The permanent link to an image."""
        return self.of(f"/v1/jobs/{job_id}/images/{index}")

    def expires_at(self) -> datetime:
        """When a link that is signed now expires."""
        return datetime.now(UTC) + timedelta(seconds=self.seconds)

    def signed_image(self, job: Job, image: StoredImage, *, for_head: bool = False) -> str:
        """A temporary link that opens the image without a key, with `GET` or with `HEAD`."""
        return self.blobs.presign(
            image.object_key,
            seconds=self.seconds,
            filename=f"{job.id}-{image.index}.{job.parameters.output_format}",
            # The names of the formats are those of their media types.
            content_type=f"image/{job.parameters.output_format}",
            for_head=for_head,
        )

    def signed_file(self, file: File, *, for_head: bool = False) -> str:
        """A temporary link that opens the file without a key, with `GET` or with `HEAD`."""
        return self.blobs.presign(
            file.object_key,
            seconds=self.seconds,
            filename=f"{file.sha256[:16]}.{file.media_type.removeprefix('image/')}",
            content_type=file.media_type,
            for_head=for_head,
        )

    def signed_upload(self, file: File) -> tuple[str, dict[str, str]]:
        """A temporary link that accepts the bytes of a declared file with `PUT`, and its signed headers."""
        return self.blobs.presign_put(
            file.object_key,
            seconds=self.seconds,
            sha256=file.sha256,
            num_bytes=file.num_bytes,
            content_type=file.media_type,
        )

"""Files as clients receive them, and the presigned links by which they are opened and put."""

from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, Field

from storage.files import File
from web.wiring import url_of, wired

Links = dict[str, str]


class FileResource(BaseModel):
    """An image that jobs may start from; a job names it by its id."""

    id: str = Field(description="`file_` and the SHA-256 of its bytes: the same bytes have the same id.")
    num_bytes: int
    media_type: str
    width: int = Field(description="Pixels, as it is looked at: turned as its EXIF says.")
    height: int
    sha256: str
    created_at: datetime
    expires_at: datetime | None = Field(
        description="When it is deleted unless a job names it by then. Null once one has: it stays."
    )
    links: Links


class FileList(BaseModel):
    """One page of files, newest first."""

    files: list[FileResource]
    next_cursor: str | None


class UploadResource(BaseModel):
    """Where to put the bytes of a declared file, and what to send with them."""

    id: str
    method: str
    url: str
    headers: dict[str, str] = Field(description="To be sent as they are: they are part of the signature.")
    expires_at: datetime
    links: Links


def file_resource(file: File) -> FileResource:
    """A file that is ready."""
    here = url_of(f"/v1/files/{file.id}")
    return FileResource(
        id=file.id,
        num_bytes=file.num_bytes,
        media_type=file.media_type,
        width=file.width,
        height=file.height,
        sha256=file.sha256,
        created_at=file.created_at,
        expires_at=file.expires_at,
        links={"self": here, "content": here + "/content"},
    )


def upload_resource(file: File) -> UploadResource:
    """A file that is yet to be put, with a freshly signed link for it."""
    wiring = wired()
    url, headers = wiring.blobs.presign_put(
        file.object_key,
        seconds=wiring.image_url_seconds,
        sha256=file.sha256,
        num_bytes=file.num_bytes,
        content_type=file.media_type,
    )
    return UploadResource(
        id=file.id,
        method="PUT",
        url=url,
        headers=headers,
        expires_at=datetime.now(UTC) + timedelta(seconds=wiring.image_url_seconds),
        links={"complete": url_of(f"/v1/files/{file.id}/complete")},
    )


def content_url(file: File, *, for_head: bool = False) -> str:
    """A link that opens the file without a key, for a while, with `GET` or with `HEAD`."""
    wiring = wired()
    return wiring.blobs.presign(
        file.object_key,
        seconds=wiring.image_url_seconds,
        filename=f"{file.sha256[:16]}.{file.media_type.removeprefix('image/')}",
        content_type=file.media_type,
        for_head=for_head,
    )

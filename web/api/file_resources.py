"""Files as clients receive them. Pure functions of rows and of the addresses to put into links."""

from datetime import datetime

from pydantic import BaseModel, Field

from storage.files import File
from web.api.addresses import Addresses

Links = dict[str, str]


class FileResource(BaseModel):
    """An image that jobs can use as input, by its id."""

    id: str = Field(description="`file_` and the SHA-256 of its bytes: the same bytes have the same id.")
    num_bytes: int
    media_type: str
    width: int = Field(description="Pixels, after the EXIF rotation.")
    height: int = Field(description="Pixels, after the EXIF rotation.")
    sha256: str
    created_at: datetime
    expires_at: datetime | None = Field(
        description="When it is deleted, unless a job uses it first. Null once a job has used it."
    )
    links: Links


class FileList(BaseModel):
    """One page of files, newest first."""

    files: list[FileResource]
    next_cursor: str | None


class UploadResource(BaseModel):
    """The presigned link that accepts the bytes of a declared file."""

    id: str
    method: str
    url: str
    headers: dict[str, str] = Field(description="Send them unchanged: they are part of the signature.")
    expires_at: datetime
    links: Links


def file_resource(file: File, addresses: Addresses) -> FileResource:
    """A file that is ready."""
    here = addresses.of(f"/v1/files/{file.id}")
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


def upload_resource(file: File, addresses: Addresses) -> UploadResource:
    """A declared file whose bytes are still to be sent, with a new link."""
    url, headers = addresses.signed_upload(file)
    return UploadResource(
        id=file.id,
        method="PUT",
        url=url,
        headers=headers,
        expires_at=addresses.expires_at(),
        links={"complete": addresses.of(f"/v1/files/{file.id}/complete")},
    )

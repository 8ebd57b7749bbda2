"""Reads CSV files and images of the caller, and writes images completely or not at all."""

import os
import secrets
from pathlib import Path

from .resources import Job


def read_csv(file: str | os.PathLike[str] | bytes, filename: str | None) -> tuple[str, bytes]:
    """The file name to send and the content. Raises `OSError`."""
    if isinstance(file, bytes):
        return filename or "prompts.csv", file
    path = Path(file)
    return filename or path.name, path.read_bytes()


def read_image(image: str | os.PathLike[str] | bytes) -> bytes:
    """The content of an image. Raises `OSError`."""
    return image if isinstance(image, bytes) else Path(image).read_bytes()


def media_type_of(content: bytes) -> str | None:
    """The media type by the first bytes; None if the API does not accept such images."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    return "image/webp" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else None


def image_path(to: str | os.PathLike[str], job: Job, index: int) -> Path:
    """The path to write to: `to`, or if that is a folder, a file in it that is named after the job."""
    path = Path(to)
    return path / f"{job.id}-{index}.{job.output_format}" if path.is_dir() else path


def write_whole(path: Path, data: bytes) -> None:
    """Replace the file in one step, or leave it unchanged.

    A special file such as /dev/stdout is written to instead of replaced; so is a file in a folder in which
    this user may not create files.
    """
    target = path.resolve()
    if target.exists() and not (target.is_file() and os.access(target.parent, os.W_OK | os.X_OK)):
        path.write_bytes(data)
        return
    draft = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise

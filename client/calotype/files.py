"""The caller's own files: a CSV or an image that is read, an image that is written whole or not at all."""

import os
import secrets
from pathlib import Path

from .resources import Job


def read_csv(file: str | os.PathLike[str] | bytes, filename: str | None) -> tuple[str, bytes]:
    """The name of a CSV for the server, and its content. Raises `OSError`."""
    if isinstance(file, bytes):
        return filename or "prompts.csv", file
    path = Path(file)
    return filename or path.name, path.read_bytes()


def read_image(image: str | os.PathLike[str] | bytes) -> bytes:
    """The content of an image. Raises `OSError`."""
    return image if isinstance(image, bytes) else Path(image).read_bytes()


def media_type_of(content: bytes) -> str | None:
    """By the first bytes of an image; None for what the API reads no image from."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    return "image/webp" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else None


def image_path(to: str | os.PathLike[str], job: Job, index: int) -> Path:
    """Where the image goes: `to`, or a file named after the job in it if it is a folder."""
    path = Path(to)
    return path / f"{job.id}-{index}.{job.output_format}" if path.is_dir() else path


def write_whole(path: Path, data: bytes) -> None:
    """Put `data` there in one step, or leave what was there as it is.

    What is no ordinary file, as /dev/stdout, is written to and not replaced; so is a file in a folder where
    this user may make none.
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

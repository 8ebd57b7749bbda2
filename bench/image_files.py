"""How fast and how large: Pillow's ways to write a PNG, a WebP and a JPEG, over images of three kinds.

    python -m bench.image_files [--repeats 7] [--samples 8]

Owns the list of ways and the images: the shipped model's own, flat drawings, and grainy noise with the
spectrum of a photograph. What the service uses is chosen in `tasks/images/file.py`, which it cannot see.
"""

import argparse
import io
import statistics
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]  # (H, W, 3)

BASELINE = "png default (level 6)"
ALLOWED_SIZE = 1.05  # of the baseline's bytes
MODEL = Path("models/tiny")
PROMPTS = (
    "a red heart on a white background",
    "a blue star above a yellow circle on a gray background",
    "a large green ring left of a small purple square on a black background",
    "an orange triangle on a pink background",
)


@dataclass(frozen=True)
class Way:
    """One way to write a file: Pillow's format and the options of its `save`."""

    name: str
    format: str
    options: Mapping[str, Any]
    is_lossless: bool = True


WAYS = (
    Way(BASELINE, "PNG", {}),
    *(Way(f"png level {level}", "PNG", {"compress_level": level}) for level in (0, 1, 2, 3, 4, 5, 7, 8, 9)),
    Way("png filtered", "PNG", {"compress_type": zlib.Z_FILTERED}),
    Way("png rle", "PNG", {"compress_type": zlib.Z_RLE}),
    Way("png rle, level 1", "PNG", {"compress_type": zlib.Z_RLE, "compress_level": 1}),
    Way("png huffman only", "PNG", {"compress_type": zlib.Z_HUFFMAN_ONLY}),
    Way("png fixed", "PNG", {"compress_type": zlib.Z_FIXED}),
    Way("png optimize", "PNG", {"optimize": True}),
    *(
        Way(f"webp lossless, method {method}", "WEBP", {"lossless": True, "method": method, "exact": True})
        for method in (0, 2, 4)
    ),
    *(
        Way(f"webp quality 90, method {method}", "WEBP", {"quality": 90, "method": method}, False)
        for method in (0, 2, 4)
    ),
    Way("jpeg quality 90", "JPEG", {"quality": 90}, False),
    Way("jpeg quality 90, 4:4:4", "JPEG", {"quality": 90, "subsampling": 0}, False),
)


@dataclass(frozen=True)
class Measured:
    """Medians over the images of one kind, each image taken at the fastest of its repeats."""

    milliseconds: float
    kilobytes: float
    ratio: float  # median over the images of size / baseline's size


def measure(ways: Sequence[Way], images: Sequence[Pixels], repeats: int) -> dict[str, Measured]:
    """Write every image in every way, the ways taking turns so that a busy moment hits all of them."""
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    sizes: dict[str, list[int]] = {way.name: [] for way in ways}
    for pixels in images:
        best = dict.fromkeys(seconds, float("inf"))
        for _ in range(repeats):
            for way in ways:
                started = time.perf_counter()
                data = write(pixels, way)
                best[way.name] = min(best[way.name], time.perf_counter() - started)
        for way in ways:
            data = write(pixels, way)
            if way.is_lossless and not np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels):
                raise AssertionError(f"{way.name} is not lossless")
            sizes[way.name].append(len(data))
            seconds[way.name].append(best[way.name])
    base = sizes[ways[0].name]
    return {
        name: Measured(
            statistics.median(seconds[name]) * 1e3,
            statistics.median(sizes[name]) / 1e3,
            statistics.median(size / first for size, first in zip(sizes[name], base, strict=True)),
        )
        for name in seconds
    }


def write(pixels: Pixels, way: Way) -> bytes:
    """The file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=way.format, **way.options)
    return buffer.getvalue()


def model_images(side: int, num_images: int) -> list[Pixels]:
    """What the shipped model draws; needs torch, and a minute at most."""
    from engine.loading.load import ModelSpec, load_engine
    from engine.request import GenerationRequest

    engine = load_engine(
        [ModelSpec("tiny", str(MODEL))], device="cpu:0", row_limits={"tiny": {side * side: 8}}, num_threads=1
    )
    handles = [
        engine.submit(
            GenerationRequest(
                model="tiny",
                prompt=PROMPTS[index % len(PROMPTS)],
                width=side,
                height=side,
                num_inference_steps=12,
                guidance_scale=2.0,
                seed=index,
            )
        )
        for index in range(num_images)
    ]
    while not engine.is_idle:
        engine.tick()
    return [handle.future.result().pixels for handle in handles]


def flat_images(side: int, num_images: int) -> list[Pixels]:
    """Discs and boxes of one colour each on one colour: what a drawing program saves."""
    rng = np.random.default_rng(1)
    rows, columns = np.mgrid[:side, :side]
    images: list[Pixels] = []
    for _ in range(num_images):
        pixels = np.full((side, side, 3), rng.integers(0, 256, 3), np.uint8)
        for _ in range(6):
            row, column = rng.integers(0, side, 2)
            radius = rng.integers(side // 16, side // 4)
            is_disc = rng.random() < 0.5
            down, across = np.abs(rows - row), np.abs(columns - column)
            inside = down**2 + across**2 < radius**2 if is_disc else np.maximum(down, across) < radius
            pixels[inside] = rng.integers(0, 256, 3)
        images.append(pixels)
    return images


def grainy_images(side: int, num_images: int) -> list[Pixels]:
    """Noise whose amplitude falls as 1/frequency, as in photographs, with a sensor's grain over it."""
    rng = np.random.default_rng(2)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    frequency[0, 0] = np.inf
    images = []
    for _ in range(num_images):
        planes = []
        for _ in range(3):
            spectrum = np.fft.fft2(rng.standard_normal((side, side))) / frequency
            plane = np.fft.ifft2(spectrum).real
            planes.append(128 + 50 * plane / plane.std() + rng.normal(0, 2.5, (side, side)))
        images.append(np.stack(planes, axis=-1).clip(0, 255).round().astype(np.uint8))
    return images


def table(found: Mapping[str, Mapping[str, Measured]]) -> Iterator[str]:
    """Markdown, a line a way; in bold the fastest lossless way of a kind that is small enough, PNG alone."""
    kinds = list(found)
    winners = {kind: _winner(found[kind]) for kind in kinds}
    yield "| way | " + " | ".join(f"{kind}: ms / KB / size" for kind in kinds) + " |"
    yield "|---|" + "---|" * len(kinds)
    for way in WAYS:
        cells = []
        for kind in kinds:
            one = found[kind][way.name]
            cell = f"{one.milliseconds:.2f} / {one.kilobytes:.1f} / {one.ratio:.2f}"
            cells.append(f"**{cell}**" if way.name == winners[kind] else cell)
        yield f"| {way.name} | " + " | ".join(cells) + " |"


def _winner(measured: Mapping[str, Measured]) -> str:
    pngs = [way.name for way in WAYS if way.format == "PNG" and measured[way.name].ratio <= ALLOWED_SIZE]
    return min(pngs, key=lambda name: measured[name].milliseconds)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--samples", type=int, default=8)
    asked = options.parse_args()
    kinds = {
        "the model, 128²": model_images(128, asked.samples),
        "the model, 192²": model_images(192, asked.samples),
        "flat, 512²": flat_images(512, asked.samples),
        "grainy, 512²": grainy_images(512, asked.samples),
    }
    found = {kind: measure(WAYS, images, asked.repeats) for kind, images in kinds.items()}
    zlib_name = f"zlib-ng {features.version('zlib_ng')}" if features.check("zlib_ng") else "zlib"
    print(f"Pillow {features.version('pil')}, {zlib_name}; medians over {asked.samples} images.\n")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()

"""What stands beside a step: encoding a text, and decoding in chunks of one, two and four.

    python -m bench.stages [--threads 1] [--repeats 15]

The engine decodes in one fixed chunk, since a chunk's size can show in the bits. A larger one pays only if
it is faster an image than a chunk of one: a lone image then costs a whole chunk, padding included.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from diffusers import StableDiffusionPipeline

MODEL = "models/tiny"
PROMPT = "a large blue star above a small red heart on a yellow background"
SIDES = (128, 192)
STEP_ROWS = (4, 8, 16)
CHUNKS = (1, 2, 4)


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """The median, after two that do not count."""
    taken = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[2:]) * 1e3


@torch.inference_mode()
def measure(repeats: int) -> list[tuple[str, str, float, float]]:
    """`(size, what, milliseconds, milliseconds an image or row)`."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        MODEL, dtype=torch.float32, safety_checker=None, local_files_only=True
    )

    def encode() -> torch.Tensor:
        text: torch.Tensor = pipeline.encode_prompt(PROMPT, "cpu", 1, do_classifier_free_guidance=False)[0]
        return text

    encoding = milliseconds(encode, repeats)
    found = [("", "encode one text", encoding, encoding)]
    text = encode()
    for side in SIDES:
        latent_side = side // pipeline.vae_scale_factor
        shape = (pipeline.unet.config.in_channels, latent_side, latent_side)
        for rows in STEP_ROWS:
            latents, timesteps = torch.randn(rows, *shape), torch.full((rows,), 500.0)
            texts = text.expand(rows, -1, -1)
            taken = milliseconds(lambda: pipeline.unet(latents, timesteps, texts), repeats)  # noqa: B023  called here
            found.append((f"{side}²", f"step, {rows} rows", taken, taken / rows))
        for chunk in CHUNKS:
            latents = torch.randn(chunk, *shape)
            taken = milliseconds(lambda: pipeline.vae.decode(latents), repeats)  # noqa: B023  called here
            found.append((f"{side}²", f"decode, chunk of {chunk}", taken, taken / chunk))
    return found


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--repeats", type=int, default=15)
    asked = options.parse_args()
    torch.set_num_threads(asked.threads)
    print("| size | what | ms | ms for each |\n|---|---|---|---|")
    for size, what, taken, each in measure(asked.repeats):
        print(f"| {size} | {what} | {taken:.1f} | {each:.1f} |")


if __name__ == "__main__":
    main()

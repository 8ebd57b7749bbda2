"""What a job's images took, as its row keeps it: seconds by what they went for, and in what company.

It knows the engine's outcomes and no row, file or clock.
"""

from collections import Counter
from collections.abc import Sequence

from engine.request import GeneratedImage


def timings_of(generated: Sequence[GeneratedImage]) -> dict[str, float]:
    """Where the seconds of the slowest image went; of all, their share of the device and their company.

    `steps_alone` and its like count the steps in step batches that were not fuller, by reason.
    """
    slowest = max(
        generated, key=lambda image: image.timings.waiting_seconds + image.timings.denoising_seconds
    )
    reasons: Counter[str] = Counter()
    for image in generated:
        reasons.update(image.not_fuller)
    return {
        "waiting_seconds": slowest.timings.waiting_seconds,
        "encoding_seconds": slowest.timings.encoding_seconds,
        "denoising_seconds": slowest.timings.denoising_seconds,
        "decoding_seconds": slowest.timings.decoding_seconds,
        "num_ticks_waited": slowest.timings.num_ticks_waited,
        "device_seconds": sum(image.timings.device_seconds for image in generated),
        "mean_step_batch": sum(image.mean_step_batch for image in generated) / len(generated),
        **{f"steps_{reason}": num_steps for reason, num_steps in sorted(reasons.items())},
    }

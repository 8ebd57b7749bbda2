"""What an image was drawn from, in words for the image itself. Written only where the account wants it.

Owns the names and their order; it does not know how a file holds them.
"""

from catalogue.parameters import PARAMETERS, in_one_text
from storage.job_views import Job


def parameters_of(job: Job, seed: int) -> dict[str, str]:
    """By the API's names: a job of these, with `num_images` 1, gives this very image again."""
    values = {**job.parameters.values(), "seed": seed}
    same = {name: values[name] for name, parameter in PARAMETERS.items() if parameter.changes_pixels}
    same |= same.pop("pipeline_parameters")
    # What no image is drawn from is left out: input images and adapters that the job does not name.
    words = {name: str(in_one_text(value)) for name, value in same.items() if value not in (None, [])}
    return {"software": "calotype", "model": job.model, **words, "job_id": job.id}

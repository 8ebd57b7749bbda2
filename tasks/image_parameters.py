"""What an image was drawn from, in words for the image itself. Written only where the account wants it.

Owns the names and their order; it does not know how a file holds them.
"""

from storage.job_views import Job

_SAME_AS_JOB = (
    "prompt", "negative_prompt", "model", "width", "height", "num_inference_steps", "guidance_scale",
    "guidance_cutoff", "step_cache", "scheduler",
)  # fmt: skip


def parameters_of(job: Job, seed: int) -> dict[str, str]:
    """By the API's names: a job of these, with `num_images` 1, gives this very image again."""
    same = {name: str(getattr(job, name)) for name in _SAME_AS_JOB}
    return {"software": "calotype", **same, "seed": str(seed), "job_id": job.id}

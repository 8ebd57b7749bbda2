"""Tensors: encode a prompt, run a step batch (one forward pass of its company), decode an image.

Owns no generation and no order; the engine says who runs. Exactness is made here: a forward pass has a
bucket's number of rows, text encoding and decoding each take one item at a time, and a generation only
changes when its whole step has succeeded, so a failed step batch can be run again in parts.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from engine.buckets import at
from engine.company import Company
from engine.embeddings import Embeddings
from engine.errors import (
    DeviceLost,
    EngineError,
    GenerationFailed,
    GenerationImpossible,
    NumericError,
    OutOfMemory,
    PromptInvalid,
)
from engine.families.family import Conditions, Encoding, Family
from engine.forward import ForwardPass
from engine.native_generation import NativeGeneration
from engine.prompt_notation import notation_in
from engine.request import GenerationRequest, RequestWarning
from engine.sampling import guide
from engine.seen_costs import SeenCosts


class Runner:
    """Runs generations on their models; `families` are the loaded models by name.

    `bucket_rows` is each family's own, unless it is given: who promises nothing about bytes needs no padding.
    """

    def __init__(
        self,
        families: Mapping[str, Family],
        clock: Callable[[], float] = time.monotonic,
        bucket_rows: Callable[[int], int] | None = None,
    ) -> None:
        self._families = families
        self._clock = clock
        self._bucket_rows = bucket_rows
        self._embeddings = Embeddings(families)
        self.seen_costs = SeenCosts()

    def encode(self, generation: NativeGeneration) -> None:
        """Give a generation its embeddings and its first latents, the same as diffusers' pipeline would."""
        started_at = self._clock()
        request, family = generation.request, self._families[generation.key.model]
        generation.generator.manual_seed(request.seed)  # encoding may be tried twice
        generation.encoding = self._encode(request, "prompt")
        read = {"prompt": generation.encoding}
        if generation.is_guided:
            read["negative_prompt"] = generation.negative_encoding = self._encode(request, "negative_prompt")
        warnings = []
        for name, encoding in read.items():
            warnings += [RequestWarning("prompt_cut", name, sentence) for sentence in encoding.warnings]
            if sentence := notation_in(getattr(request, name)):
                warnings.append(RequestWarning("notation_unread", name, sentence))
        if request.negative_prompt and not generation.is_guided:
            unused = "it has no effect without guidance"
            warnings.append(RequestWarning("negative_prompt_unused", "negative_prompt", unused))
        generation.warnings = tuple(warnings)
        shape = (1, family.latent_channels, generation.key.latent_height, generation.key.latent_width)
        noise = torch.randn(shape, generator=generation.generator, dtype=family.dtype)
        Company([generation], noise.to(family.device) * generation.table.init_noise_sigma)
        generation.encoding_seconds = self._clock() - started_at
        self.seen_costs.saw_encoding(generation.key, generation.encoding_seconds)

    def _encode(self, request: GenerationRequest, name: Literal["prompt", "negative_prompt"]) -> Encoding:
        try:
            return self._embeddings.encode(
                request.model,
                getattr(request, name),
                is_negative=name == "negative_prompt",
                account=request.account,
            )
        except PromptInvalid as error:
            raise PromptInvalid(f"{name}: {error}") from error

    def step(self, members: Sequence[NativeGeneration]) -> dict[NativeGeneration, EngineError]:
        """Take every member one step further, in one forward pass; those returned are no longer finite."""
        started_at = self._clock()
        num_rows, full_share = _count_rows(members)  # before: a step may end its members' guidance
        company = Company.of(members)
        sampler_step = company.sampler_step(members)
        output = self._predict(members, company.latents, sampler_step.scale(company.latents))
        following, history = sampler_step.advance(members, output, company.latents, company.history)
        is_finite: list[bool] = torch.isfinite(following).flatten(1).all(1).tolist()
        company.commit(following, history)
        for member in members:
            member.commit_step(len(members))
        bucket = self._bucket_of(members[0])(num_rows)
        self.seen_costs.saw_step(members[0].key, bucket, self._clock() - started_at, full_share=full_share)
        return {
            member: NumericError() for member, finite in zip(members, is_finite, strict=True) if not finite
        }

    def _predict(self, members: Sequence[NativeGeneration], latents: Tensor, model_input: Tensor) -> Tensor:
        """The guided model output `(B, C, h, w)`; `model_input` is the latents as the samplers scale them."""
        family = self._families[members[0].key.model]
        forward = ForwardPass(members, self._bucket_of(members[0]))
        guided, encodings = forward.guided, forward.encodings
        rows = _on(latents, torch.tensor(forward.member_indices))
        timesteps = _gather(latents, [member.table.timesteps[member.step_index] for member in members])
        scales = _on(latents, torch.tensor([member.request.guidance_scale for member in members]))
        conditions = Conditions.of(encodings, scales[rows])
        output = forward.predict(family, model_input[rows], timesteps[rows], conditions)
        conditional, unconditional = output[: len(members)], output[len(members) :]
        if not guided:
            return conditional
        which = _on(latents, torch.tensor(guided))
        result = conditional.clone()
        result[which] = guide(conditional[which], unconditional, scales[which])
        return result

    def _bucket_of(self, member: NativeGeneration) -> Callable[[int], int]:
        """At how many rows so many of this member's model and shape run."""
        key = member.key
        buckets = at(self._families[key.model].buckets, key.latent_height, key.latent_width)
        return self._bucket_rows or buckets.rows

    def decode(self, generation: NativeGeneration) -> np.ndarray:
        """The image, uint8 `(H, W, 3)`, rounded as diffusers' `VaeImageProcessor` rounds."""
        started_at = self._clock()
        pixels = self._families[generation.key.model].decode(generation.latents)
        if not torch.isfinite(pixels).all():
            raise NumericError("the decoded image is not finite")
        pixels = (pixels * 0.5 + 0.5).clamp(0, 1)
        image: np.ndarray = pixels.cpu().permute(0, 2, 3, 1).float().numpy()[0]
        self.seen_costs.saw_decoding(generation.key, self._clock() - started_at)
        return (image * 255).round().astype(np.uint8)

    def free(self, running: Sequence[NativeGeneration] = ()) -> None:
        """Give device memory back after an out-of-memory error: kept embeddings, and step caches' features.

        What is `running` needs its features again, to the bit, so these go to main memory meanwhile.
        """
        self._embeddings.clear()
        for generation in running:
            generation.step_cache.leave_device()
        if any(family.device.type == "cuda" for family in self._families.values()):
            torch.cuda.empty_cache()


IMPOSSIBLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)
"""Errors of Python code about what it was given: the same request would raise them again."""
ABOUT_ARGUMENTS = re.compile(
    r"(?i)\b(?:sizes? of tensor|shapes?|dimensions?|dtype|out of (?:range|bounds)|must match|expected"
    r"|not implemented)"
)
"""What a `RuntimeError` of torch says when it is about its arguments and not about the device."""
ABOUT_DEVICE = re.compile(r"(?i)CUDA|cudnn|cublas|STATUS_|HIP |miopen|triton|nccl|memory|driver|kernel")


def translate(error: Exception) -> EngineError:
    """The engine's word for an exception out of torch or a model; the only place that reads messages."""
    message = str(error)
    if isinstance(error, EngineError):
        return error
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in message:
        return OutOfMemory()
    if "STATUS_ALLOC_FAILED" in message:  # cuBLAS, cuDNN and cuSPARSE ask for memory of their own
        return OutOfMemory()
    if isinstance(error, torch.AcceleratorError) or "CUDA error" in message:
        return OutOfMemory() if "out of memory" in message else DeviceLost(message.partition("\n")[0])
    is_final = isinstance(error, IMPOSSIBLE) or (
        isinstance(error, RuntimeError)
        and ABOUT_ARGUMENTS.search(message)
        and not ABOUT_DEVICE.search(message)
    )
    failed = GenerationImpossible if is_final else GenerationFailed
    return failed(f"{type(error).__name__}: {message.partition(chr(10))[0]}")


def _count_rows(members: Sequence[NativeGeneration]) -> tuple[int, float]:
    """Rows of the members' next step, and the share of them that run the whole model."""
    full = [member for member in members if member.step_cache.is_full(member.step_index)]
    num_rows = sum(member.num_rows for member in members)
    return num_rows, sum(member.num_rows for member in full) / num_rows


def _gather(like: Tensor, scalars: list[Tensor]) -> Tensor:
    return _on(like, torch.stack(scalars))


def _on(like: Tensor, tensor: Tensor) -> Tensor:
    return tensor.to(like.device, non_blocking=True)

"""A fake pipeline that computes without weights and fails on command, and a clock set by hand."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from diffusers.configuration_utils import FrozenDict
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor
from torch.nn import Module

from engine.pipelines.pipeline_model import PipelineModel

MARKS = {"explode": 1.0, "not a number": 2.0, "huge": 3.0, "lose the device": 4.0}
LATENT_CHANNELS = 4
PIXELS_PER_LATENT = 8


class FakeTextEncoder(Module):
    """Encodes a text as the number of its mark, `(1, 1, 1)`."""

    def __init__(self) -> None:
        super().__init__()
        self.on_encode: Callable[[str], None] = lambda _: None

    def forward(self, text: str) -> Tensor:
        self.on_encode(text)
        if text == "cannot be encoded":
            raise RuntimeError("tokenizer")
        return torch.full((1, 1, 1), MARKS.get(text, 0.0))


class FakeDenoiser(Module):
    """Elementwise, so every row is exact; `MARKS` lists what it does for each prompt."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.config = FrozenDict()
        self.max_rows = 1000  # more rows run out of memory
        self.step_sizes: list[int] = []  # rows of every attempted forward pass
        self.on_predict: Callable[[], None] = lambda: None

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        return_dict: bool = True,  # noqa: ARG002  pipelines ask for tuples
    ) -> tuple[Tensor]:
        return (self.predict(sample, timestep, encoder_hidden_states),)

    def predict(self, sample: Tensor, timestep: Tensor, marks: Tensor) -> Tensor:
        """The output `(R, C, h, w)`."""
        self.on_predict()
        self.step_sizes.append(len(sample))
        timestep = timestep.expand(len(sample)) if timestep.ndim == 0 else timestep
        assert len(sample) == len(timestep) == len(marks)
        marks = marks[:, 0, 0]
        if (marks == MARKS["lose the device"]).any():
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")
        if len(sample) > self.max_rows or (marks == MARKS["huge"]).any():
            raise torch.OutOfMemoryError("CUDA out of memory")
        if (marks == MARKS["explode"]).any():
            raise ValueError("bad row")
        output = torch.sin(sample + timestep.view(-1, 1, 1, 1) / 100)
        output[marks == MARKS["not a number"]] = float("nan")
        return output


class FakeWalk:
    """A partial forward of `FakeDenoiser`: full rows compute the sine, cached rows reuse earlier latents."""

    def __init__(self, denoiser: FakeDenoiser) -> None:
        self._denoiser = denoiser
        self.inner_sizes: list[int] = []  # rows of every run of the inner blocks

    def predict(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        num_full_rows: int,
        features: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        output = self._denoiser.predict(sample, timestep, encoder_hidden_states)
        if features is None:
            features = sample.new_empty(0, *sample.shape[1:])
        num_new = len(sample) - len(features)
        assert num_new <= num_full_rows <= len(sample)
        self.inner_sizes.append(num_full_rows)
        timestep = timestep.expand(len(sample)) if timestep.ndim == 0 else timestep
        output[num_new:] = torch.tanh(features + timestep[num_new:].view(-1, 1, 1, 1) / 100)
        return output, sample[:num_new]


class FakeVAE(Module):
    """A decoder to eight pixels a side per latent."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.on_decode: Callable[[], None] = lambda: None

    def decode(self, latents: Tensor, return_dict: bool = True) -> tuple[Tensor]:  # noqa: ARG002
        assert len(latents) == 1
        self.on_decode()
        pixels = torch.sin(latents[:, :3]).repeat_interleave(8, 2).repeat_interleave(8, 3)
        return (pixels,)


class FakePipeline(DiffusionPipeline):  # type: ignore[misc]
    """A pipeline like those of diffusers, with modules that compute almost nothing."""

    vae_scale_factor = PIXELS_PER_LATENT
    num_decodings = 1

    def __init__(self, scheduler: Any, text_encoder: Any, unet: Any, vae: Any) -> None:
        super().__init__()
        self.register_to_config()
        for name, part in {"text_encoder": text_encoder, "unet": unet, "vae": vae}.items():
            setattr(self, name, part)
        self.scheduler = scheduler

    @property
    def components(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("scheduler", "text_encoder", "unet", "vae")}

    @torch.no_grad()
    def __call__(
        self,
        prompt: str,
        height: int = 64,
        width: int = 64,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        negative_prompt: str | None = None,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
        output_type: str = "np",  # noqa: ARG002  always that
    ) -> Any:
        self._guidance_scale = guidance_scale
        prompt_embeds = self.text_encoder(prompt)
        if guidance_scale > 1:
            prompt_embeds = torch.cat([self.text_encoder(negative_prompt or ""), prompt_embeds])
        self.scheduler.set_timesteps(num_inference_steps)
        shape = (1, LATENT_CHANNELS, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
        latents = torch.randn(shape, generator=generator) * self.scheduler.init_noise_sigma
        optional = (
            {"eta": eta, "generator": generator}
            if "eta" in inspect.signature(self.scheduler.step).parameters
            else {}
        )
        for timestep in self.scheduler.timesteps:
            is_guided = self._guidance_scale > 1
            rows = torch.cat([latents] * 2) if is_guided else latents
            rows = self.scheduler.scale_model_input(rows, timestep)
            output = self.unet(rows, timestep, encoder_hidden_states=prompt_embeds, return_dict=False)[0]
            if is_guided:
                negative, positive = output.chunk(2)
                output = negative + self._guidance_scale * (positive - negative)
            latents = self.scheduler.step(output, timestep, latents, **optional).prev_sample
            latents = self.stepped(latents, prompt)
        for _ in range(self.num_decodings):
            pixels = self.vae.decode(latents, return_dict=False)[0]
        image = (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        return ImagePipelineOutput(images=image)

    def stepped(self, latents: Tensor, prompt: str) -> Tensor:  # noqa: ARG002
        """The latents after a step; subclasses may change them."""
        return latents


class FakeModel(PipelineModel):
    """A loaded `FakePipeline` that records its passes and can be told to fail; it can cut guidance off."""

    can_cut_guidance = True
    pipeline_class = FakePipeline

    def __init__(
        self,
        *,
        max_rows: int = 1000,
        scheduler: Any = None,
        denoiser: FakeDenoiser | None = None,
        text_encoder: FakeTextEncoder | None = None,
        vae: FakeVAE | None = None,
    ) -> None:
        self.fake = denoiser or FakeDenoiser()
        self.fake.max_rows = max_rows
        self.text_encoder, self.vae = text_encoder or FakeTextEncoder(), vae or FakeVAE()
        super().__init__(
            self.pipeline_class(
                scheduler or DDIMScheduler(clip_sample=False),
                self.text_encoder,
                self.fake,
                self.vae,
            )
        )
        self.exchange.takes_float_timesteps = True

    @property
    def num_decodings(self) -> int:
        """The number of passes of a decoding."""
        return int(self._pipeline.num_decodings)

    @num_decodings.setter
    def num_decodings(self, num_decodings: int) -> None:
        self._pipeline.num_decodings = num_decodings

    @property
    def step_sizes(self) -> list[int]:
        """The rows of every attempted forward pass."""
        return self.fake.step_sizes

    @property
    def max_rows(self) -> int:
        """More rows than this run out of memory."""
        return self.fake.max_rows

    @max_rows.setter
    def max_rows(self, max_rows: int) -> None:
        self.fake.max_rows = max_rows

    @property
    def on_predict(self) -> Callable[[], None]:
        """A function that every forward pass calls."""
        return self.fake.on_predict

    @on_predict.setter
    def on_predict(self, on_predict: Callable[[], None]) -> None:
        self.fake.on_predict = on_predict


class FakeCachingModel(FakeModel):
    """A `FakeModel` whose rows can have a step cache."""

    can_cache_steps = True

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.partial_forward = FakeWalk(self.fake)

    @property
    def inner_sizes(self) -> list[int]:
        """The rows of every run of the inner blocks."""
        sizes: list[int] = self.partial_forward.inner_sizes
        return sizes


class SizeDependent(FakeDenoiser):
    """Rounds differently from `from_rows` rows on, as a kernel chosen by shape does."""

    def __init__(self, from_rows: int = 8, difference: float = 1e-6) -> None:
        super().__init__()
        self.from_rows, self.difference = from_rows, difference

    def predict(self, sample: Tensor, timestep: Tensor, marks: Tensor) -> Tensor:
        output = super().predict(sample, timestep, marks)
        return output + self.difference if len(sample) >= self.from_rows else output


class NeighbourDependent(FakeDenoiser):
    """A denoiser whose rows depend on the other rows."""

    def __init__(self, difference: float = 1e-3) -> None:
        super().__init__()
        self.difference = difference

    def predict(self, sample: Tensor, timestep: Tensor, marks: Tensor) -> Tensor:
        return super().predict(sample, timestep, marks) + sample.mean() * self.difference


class Costly(FakeDenoiser):
    """Advances a clock by `step_seconds` of the rows of each forward pass."""

    def __init__(self, clock: "SetClock", step_seconds: Callable[[int], float]) -> None:
        super().__init__()
        self.clock, self.step_seconds = clock, step_seconds

    def predict(self, sample: Tensor, timestep: Tensor, marks: Tensor) -> Tensor:
        output = super().predict(sample, timestep, marks)
        self.clock.advance(self.step_seconds(len(sample)))
        return output


class CostlyWalk(FakeWalk):
    """A cached step takes `cached_share` of the seconds of a full one; the inner blocks take the rest."""

    def __init__(self, denoiser: Costly, cached_share: float) -> None:
        super().__init__(denoiser)
        self._costly = denoiser
        self.cached_share = cached_share

    def predict(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        num_full_rows: int,
        features: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        output, new = super().predict(sample, timestep, encoder_hidden_states, num_full_rows, features)
        step_seconds = self._costly.step_seconds
        full_seconds = step_seconds(num_full_rows) if num_full_rows else 0.0
        # The seconds of a full step have passed by now.
        self._costly.clock.advance((1 - self.cached_share) * (full_seconds - step_seconds(len(output))))
        return output, new


class SetClock:
    """A clock that moves only when a test advances it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Advance the clock."""
        self.now += seconds

"""Parked calls: which can share a forward pass, and that each gets its own part of the output."""

from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor

from engine.pipelines.parked_call import Merger, ParkedCall, SharedTensors, split


def parked(**arguments: Any) -> ParkedCall:
    """A parked call of a transformer with these arguments."""
    return ParkedCall("transformer", arguments, SharedTensors())


def latents(seed: int, num_rows: int = 1) -> Tensor:
    return torch.randn(num_rows, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_rows_timesteps_and_texts_may_differ() -> None:
    first = parked(x=latents(1), timestep=torch.tensor(3.0), text=latents(2), kwargs={"pooled": latents(3)})
    second = parked(x=latents(4), timestep=torch.tensor(9.0), text=latents(5), kwargs={"pooled": latents(6)})
    guided = parked(
        x=latents(7, 2), timestep=torch.tensor(9.0), text=latents(8, 2), kwargs={"pooled": latents(9, 2)}
    )
    assert first.signature == second.signature == guided.signature
    merged = Merger().merge([first, second, guided], 4)
    assert merged["timestep"].tolist() == [3.0, 9.0, 9.0, 9.0]
    assert torch.equal(merged["kwargs"]["pooled"], torch.cat([latents(3), latents(6), latents(9, 2)]))


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.zeros(1, 4, 8, 16)},
        {"x": torch.zeros(1, 4, 8, 8, dtype=torch.bfloat16)},
        {"text": torch.zeros(1, 5, 8)},
        {"rotation": torch.ones(7, 3)},
        {"img_ids": torch.ones(1, 7, 3)},
        {"scale": 0.5},
        {"scale": True},
        {"shapes": [[(1, 4, 9)]]},
        {"residuals": (torch.zeros(1, 2), torch.zeros(1, 3))},
        {"more": None},
    ],
)
def test_calls_that_differ_in_what_all_rows_share_do_not_share_a_pass(other: dict[str, Any]) -> None:
    arguments = {
        "x": torch.zeros(1, 4, 8, 8),
        "text": torch.zeros(1, 4, 8),
        "rotation": torch.zeros(7, 3),
        "img_ids": torch.zeros(1, 7, 3),
        "scale": 1.0,
        "shapes": [[(1, 4, 8)]],
        "residuals": (torch.zeros(1, 2), torch.zeros(1, 2)),
    }
    assert parked(**arguments).signature == parked(**arguments).signature
    assert parked(**arguments).signature != parked(**{**arguments, **other}).signature


def test_positions_of_a_single_frame_are_no_row() -> None:
    calls = [parked(x=latents(seed), visual_rope_pos=[torch.arange(1), torch.arange(4)]) for seed in (1, 2)]
    assert calls[0].signature == calls[1].signature
    assert [one.tolist() for one in Merger().merge(calls, 2)["visual_rope_pos"]] == [[0], [0, 1, 2, 3]]


def test_each_row_has_its_entry_of_a_list_of_values_and_all_entries_are_equal() -> None:
    alone = parked(x=latents(1), shape_list=[[(1, 4, 4)]])
    guided = parked(x=latents(2, 2), shape_list=[[(1, 4, 4)], [(1, 4, 4)]])
    other = parked(x=latents(3), shape_list=[[(1, 4, 8)]])
    assert alone.signature == guided.signature != other.signature
    assert Merger().merge([alone, guided], 4)["shape_list"] == [[(1, 4, 4)]] * 4


def test_lists_of_images_share_a_pass_whatever_their_sizes() -> None:
    first = parked(x=[torch.zeros(4, 1, 8, 8)], t=torch.tensor([0.5]), texts=[torch.zeros(3, 16)])
    second = parked(x=[torch.ones(4, 1, 8, 12)], t=torch.tensor([0.1]), texts=[torch.ones(9, 16)])
    assert first.signature == second.signature
    merged = Merger().merge([first, second], 4)
    assert [one.shape[-1] for one in merged["x"]] == [8, 12, 12, 12]
    assert [one.shape[0] for one in merged["texts"]] == [3, 9, 9, 9]


def test_padding_repeats_the_last_row() -> None:
    merged = Merger().merge([parked(x=latents(1)), parked(x=latents(2))], 4)
    assert torch.equal(merged["x"], torch.cat([latents(1), *3 * [latents(2)]]))


def test_what_is_the_same_at_the_next_step_is_not_copied_again() -> None:
    merger, texts = Merger(), [latents(1), latents(2)]
    first = merger.merge([parked(x=latents(3), text=text) for text in texts], 2)
    second = merger.merge([parked(x=latents(4), text=text) for text in texts], 2)
    assert second["text"] is first["text"]
    assert not torch.equal(second["x"], first["x"])
    assert (
        merger.merge([parked(x=latents(4), text=text) for text in reversed(texts)], 2)["text"]
        is not first["text"]
    )
    merger.forget()
    assert merger.merge([parked(x=latents(4), text=text) for text in texts], 2)["text"] is not first["text"]


def test_latents_that_are_written_in_place_are_read_again() -> None:
    merger, calls = Merger(), [parked(x=latents(1)), parked(x=latents(2))]
    merger.merge(calls, 2)
    calls[1].leaves[0].fill_(3.0)  # as Kandinsky 5 does with each step's latents
    assert torch.equal(merger.merge(calls, 2)["x"], torch.cat([latents(1), torch.full((1, 4, 8, 8), 3.0)]))


@pytest.mark.parametrize(
    "made", [lambda x: (x,), lambda x: {"sample": x}, lambda x: [x, (x, 3)], lambda x: ([x, x, x, x],)]
)
def test_each_call_gets_its_rows_of_the_output_and_no_padding(made: Any) -> None:
    output = torch.arange(4.0).view(4, 1)
    parts = split(made(output), [1, 2], 4)
    expected = [made(output[:1]), made(output[1:3])]
    assert repr(parts) == repr(expected)


def test_each_call_gets_its_entries_of_a_list_where_it_gave_a_list() -> None:
    images = [torch.full((1, size), float(size)) for size in (1, 2, 3, 4)]
    parts = split((images,), [1, 2], 4, is_listed=True)
    assert repr(parts) == repr([(images[:1],), (images[1:3],)])


def test_each_call_gets_its_rows_of_the_distribution_of_an_encoded_image() -> None:
    parameters = torch.randn(3, 8, 2, 2)
    whole = AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(parameters))
    parts = split(whole, [1, 2], 3)
    for part, rows in zip(parts, (slice(0, 1), slice(1, 3)), strict=True):
        alone = DiagonalGaussianDistribution(parameters[rows])
        drawn = [one.sample(torch.Generator().manual_seed(1)) for one in (part.latent_dist, alone)]
        assert torch.equal(*drawn)
        assert torch.equal(part.latent_dist.mode(), alone.mode())


def test_with_one_layout_a_row_of_a_pass_has_the_same_strides_however_it_was_made() -> None:
    """Latents of an input image have their channels last, and kernels are chosen by layout."""
    plain, other = latents(1), latents(2).to(memory_format=torch.channels_last)

    def made(value: Tensor) -> ParkedCall:
        return ParkedCall("unet", {"sample": value}, SharedTensors(), has_one_layout=True)

    for calls in ([made(other)], [made(other), made(other)], [made(plain), made(other)]):
        merged = Merger().merge(calls, len(calls))["sample"]
        assert merged.is_contiguous()
        assert torch.equal(merged[-1:], other)
    assert parked(sample=other).arguments()["sample"] is other, "else it is left as it is"

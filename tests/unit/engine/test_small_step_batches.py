"""A padded linear layer gives one to three rows the bits that they get among four."""

import pytest
import torch
from torch import nn

from engine.loading.optimization import pad_small_linears


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (1, 1), (1, 3), (3, 1), (1, 2, 1)])
def test_few_rows_and_few_tokens_have_the_bits_that_they_have_among_more(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Linear(768, 96))
    few = torch.randn(*shape, 768)
    rows = few.reshape(-1, 768)
    with torch.inference_mode():
        among_more = layers(torch.cat([rows, torch.randn(4 - len(rows), 768)]))[: len(rows)]
        pad_small_linears(layers)
        assert layers(few).shape == (*shape, 96)
        assert torch.equal(layers(few).reshape(-1, 96), among_more)


def test_a_linear_layer_takes_no_rows_at_all() -> None:
    layers = nn.Sequential(nn.Linear(4, 2))
    pad_small_linears(layers)
    assert layers(torch.zeros(0, 4)).shape == (0, 2)

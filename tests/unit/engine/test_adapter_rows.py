"""Adapters apply to the rows of their request only, and each row has the bits that it has alone."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from engine.adapters import adapter_rows
from engine.adapters.adapter import Adapter, Applied, Layer
from engine.adapters.adapter_rows import AdapterRows, RowsUnknownError

FEATURES, TOKENS = 16, 5


def adapter(seed: int, rank: int = 4) -> Adapter:
    noise = torch.Generator().manual_seed(seed)
    down, up = (torch.randn(*shape, generator=noise) for shape in ((FEATURES, rank), (rank, FEATURES)))
    return Adapter(f"number {seed}", {"unet": {"layer": Layer(down, up, 0.5)}})


class Denoiser(nn.Module):
    """One layer whose inputs a test chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, FEATURES)

    def forward(self, rows: Tensor) -> Tensor:
        output: Tensor = self.layer(rows)
        return output


@pytest.fixture
def unet() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser().requires_grad_(False)


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(4, TOKENS, FEATURES, generator=torch.Generator().manual_seed(1))


def passed(
    unet: Denoiser, given: Tensor, members: list[tuple[Applied, int]], num_rows: int = 4, **facts: bool
) -> Tensor:
    pipeline = SimpleNamespace(unet=unet)
    with AdapterRows(pipeline).applied("unet", members, num_rows, **facts):
        output: Tensor = unet(given)
    return output


def expected(unet: Denoiser, row: Tensor, applied: Applied) -> Tensor:
    output: Tensor = unet(row)
    for one, scale in applied:
        layer = one.layers["unet"]["layer"]
        output = output + scale * layer.scale * row @ layer.down @ layer.up
    return output


A, B = adapter(1), adapter(2, rank=3)
MEMBERS: list[tuple[Applied, int]] = [([(A, 1.0)], 1), ([], 1), ([(A, -0.5), (B, 2.0)], 1), ([(B, 1.0)], 1)]


def test_each_row_has_its_own_adapters_at_its_own_scale(unet: Denoiser, rows: Tensor) -> None:
    output = passed(unet, rows, MEMBERS)
    for row, (applied, _) in enumerate(MEMBERS):
        assert torch.allclose(output[row], expected(unet, rows[row], applied), atol=1e-5)


def test_a_row_without_adapters_and_padding_have_the_bits_of_the_module(unet: Denoiser, rows: Tensor) -> None:
    plain = unet(rows)
    output = passed(unet, rows, MEMBERS[:2])
    assert torch.equal(output[1:], plain[1:])
    assert not torch.equal(output[0], plain[0])
    assert not unet.layer._forward_hooks


def test_a_row_has_the_same_bits_at_every_position(unet: Denoiser, rows: Tensor) -> None:
    applied = [(A, 1.0), (B, 0.5)]
    same = rows[:1].repeat(4, 1, 1)
    lone = passed(unet, same, [(applied, 1)])[0]
    output = passed(unet, same, [([(B, 1.0)], 1), (applied, 2), (applied, 1)])
    assert all(torch.equal(one, lone) for one in output[1:])


def test_rows_that_round_differently_together_are_computed_one_by_one(
    unet: Denoiser, rows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some devices choose kernels by shape; the first pass of a shape detects it."""
    counts: list[int] = []

    def rounding(output: Tensor, given: Tensor, _: Layer, scale: float) -> None:
        counts.append(len(given))
        output.add_(given[:, :, :1] * scale + (1e-6 if len(given) > 1 else 0.0))

    monkeypatch.setattr(adapter_rows, "_add_linear", rounding)
    together = AdapterRows(SimpleNamespace(unet=unet))
    outputs = []
    for _ in range(2):
        with together.applied("unet", [([(A, 1.0)], 4)], 4):
            outputs.append(unet(rows))
    assert torch.equal(*outputs)
    assert counts == [4, 1, 1, 1, 1, 1, 1, 1, 1]


def test_tokens_in_one_dimension_get_the_adapters_of_their_row(unet: Denoiser, rows: Tensor) -> None:
    """Experts and packed attention have tokens in this form."""
    flat = passed(unet, rows.reshape(-1, FEATURES), MEMBERS)
    assert torch.equal(flat.reshape(rows.shape), passed(unet, rows, MEMBERS))


def test_the_first_rows_of_a_partial_forward_get_their_own_adapters(unet: Denoiser, rows: Tensor) -> None:
    output = passed(unet, rows[:2], MEMBERS, is_partial=True)
    assert torch.equal(output, passed(unet, rows, MEMBERS)[:2])


def test_rows_that_cannot_be_separated_share_a_pass_only_within_one_request(
    unet: Denoiser, rows: Tensor
) -> None:
    ragged = rows.reshape(-1, FEATURES)[:7]
    with pytest.raises(RowsUnknownError):
        passed(unet, ragged, MEMBERS, is_listed=True)
    with pytest.raises(RowsUnknownError):
        passed(unet, rows.reshape(-1, FEATURES), MEMBERS, is_listed=True)
    assert not unet.layer._forward_hooks
    whole = passed(unet, ragged, [(MEMBERS[2][0], 4)], is_listed=True)
    assert torch.allclose(whole, expected(unet, ragged, MEMBERS[2][0]), atol=1e-5)


def test_half_precision_is_added_in_the_precision_of_the_layer(unet: Denoiser, rows: Tensor) -> None:
    down, up = (one.bfloat16() for one in _weights(A))
    half = Adapter("half", {"unet": {"layer": Layer(down, up, 0.5)}})
    output = passed(unet, rows, [([(half, 1.0)], 4)])
    assert output.dtype == torch.float32
    assert torch.allclose(output, expected(unet, rows, [(A, 1.0)]), atol=0.3)


def _weights(one: Adapter) -> tuple[Tensor, Tensor]:
    layer = one.layers["unet"]["layer"]
    return layer.down, layer.up

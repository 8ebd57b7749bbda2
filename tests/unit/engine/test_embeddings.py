"""Kept embeddings: the same tensors, within the bound, and an account sees only its own."""

from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import booleans, integers, lists, sampled_from, tuples

from engine.embeddings import Embeddings
from engine.families.family import Encoding
from engine.request import GenerationRequest
from engine.runner import Runner
from tests.unit.engine.fakes import FakeFamily


class CountingFamily(FakeFamily):
    """Notes what it is asked to encode; a text's tensor is as long as the number it starts with."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded: list[tuple[str, bool]] = []

    def encode(self, text: str, *, is_negative: bool = False) -> Encoding:
        self.encoded.append((text, is_negative))
        width = int(text or 1)
        return Encoding(torch.full((1, width, 1), float(len(self.encoded))))


ASKED = tuples(
    sampled_from(["", "alice", "bob", "carol"]), sampled_from(["", "7", "100", "900", "3000"]), booleans()
)


@settings(max_examples=200, deadline=None)
@given(lists(ASKED, max_size=60), integers(0, 30_000))
def test_only_an_accounts_own_use_spares_it_an_encoding_and_the_bound_always_holds(
    asked: list[tuple[str, str, bool]], max_bytes: int
) -> None:
    """Against a plain model of the rule: whoever comes, the oldest use goes first."""
    family = CountingFamily()
    embeddings = Embeddings({"fake": family}, max_bytes)
    kept: OrderedDict[tuple[str, str, bool], Encoding] = OrderedDict()
    sizes: dict[tuple[str, str, bool], int] = {}
    for account, text, is_negative in asked:
        key = ("", "", is_negative) if not text else (account, text, is_negative)
        num_before, bytes_before = len(family.encoded), embeddings.num_bytes
        found = embeddings.encode("fake", text, is_negative=is_negative, account=account)
        assert (len(family.encoded) == num_before) == (key in kept)
        if key in kept:
            assert found is kept[key]
            kept.move_to_end(key)
        elif not text:
            kept[key], sizes[key] = found, 0
        elif account and _exactly(account, text) <= max_bytes:
            kept[key] = found
            freed = 0
            sizes[key] = _exactly(account, text)
            while sum(sizes[one] for one in kept) > max_bytes:
                oldest = next(one for one in kept if one[1])
                freed += sizes[oldest]
                del kept[oldest]
            assert embeddings.num_bytes == bytes_before + sizes[key] - freed
        assert embeddings.num_bytes == sum(sizes[one] for one in kept) <= max_bytes


def _exactly(account: str, text: str) -> int:
    probe = Embeddings({"fake": CountingFamily()}, 10**9)
    probe.encode("fake", text, is_negative=False, account=account)
    return probe.num_bytes


def test_what_another_account_asked_for_is_encoded_again() -> None:
    family = CountingFamily()
    embeddings = Embeddings({"fake": family})
    for account in ("alice", "bob", "alice", ""):
        embeddings.encode("fake", "7", is_negative=False, account=account)
    assert len(family.encoded) == 3


def test_the_empty_prompt_is_encoded_once_for_all() -> None:
    family = CountingFamily()
    embeddings = Embeddings({"fake": family}, max_bytes=0)
    for account in ("alice", "bob", ""):
        embeddings.encode("fake", "", is_negative=True, account=account)
    assert family.encoded == [("", True)]


def test_a_view_counts_with_all_that_it_keeps_alive() -> None:
    class Views(FakeFamily):
        def encode(self, text: str, *, is_negative: bool = False) -> Encoding:  # noqa: ARG002
            return Encoding(torch.zeros(1, 1000, 8)[:, :1])

    embeddings = Embeddings({"fake": Views()})
    embeddings.encode("fake", "a", is_negative=False, account="alice")
    assert embeddings.num_bytes > 1000 * 8 * 4


def test_prompts_that_cannot_be_encoded_leave_nothing_behind() -> None:
    embeddings = Embeddings({"fake": FakeFamily()})
    for _ in range(2):
        with pytest.raises(RuntimeError):
            embeddings.encode("fake", "cannot be encoded", is_negative=False, account="alice")
    assert embeddings.num_bytes == 0


def test_memory_that_runs_out_takes_the_kept_embeddings_along() -> None:
    family = CountingFamily()
    runner = Runner({"fake": family})
    embeddings = runner._embeddings
    embeddings.encode("fake", "7", is_negative=False, account="alice")
    runner.free()
    assert embeddings.num_bytes == 0
    embeddings.encode("fake", "7", is_negative=False, account="alice")
    assert len(family.encoded) == 2


def test_a_request_is_nobodys_unless_it_says_whose() -> None:
    request = GenerationRequest("fake", "a", 64, 64, 4, 1.0, 1)
    assert request.account == ""

"""Encoded prompts, kept for the next request that has the same: least recently used out first.

Owns the cache and its bound in bytes; how a text is encoded is the family's. An entry answers only to the
account that made it, so nobody can learn from how fast a prompt was encoded that another account asked
for it. It knows no tensor's meaning and changes none: with or without it the bytes are the same.
"""

import sys
from collections.abc import Mapping

from engine.families.family import Encoding, Family
from engine.least_recently_used import LeastRecentlyUsed

MAX_BYTES = 64 * 2**20
"""On the device: some 500 prompts of Stable Diffusion 1 in half precision, some 15 of FLUX.1."""

ENTRY_BYTES = 2048  # what Python needs for an entry besides its tensors and its text, rounded up

Key = tuple[str, str, bool, str]  # account, model, is_negative, text


class Embeddings:
    """Encodes one text at a time, or remembers; used on the engine thread alone."""

    def __init__(self, families: Mapping[str, Family], max_bytes: int = MAX_BYTES) -> None:
        self._families = families
        self._kept: LeastRecentlyUsed[Key, Encoding] = LeastRecentlyUsed(max_bytes)
        self._empty: dict[tuple[str, bool], Encoding] = {}  # at most two a model; says nothing of anybody

    @property
    def num_bytes(self) -> int:
        """What the kept encodings take, without those of the empty prompt."""
        return self._kept.num_bytes

    def encode(self, model: str, text: str, *, is_negative: bool, account: str) -> Encoding:
        """The text's encoding. Without an `account` nobody knows whose it is, so it is not kept."""
        if not text:
            if (model, is_negative) not in self._empty:
                self._empty[model, is_negative] = self._encode(model, text, is_negative)
            return self._empty[model, is_negative]
        if not account:
            return self._encode(model, text, is_negative)
        key = (account, model, is_negative, text)
        encoding = self._kept.get(key)
        if encoding is None:
            encoding = self._encode(model, text, is_negative)
            self._kept.keep(key, encoding, _bytes_of(key, encoding))
        return encoding

    def clear(self) -> None:
        """Give all of it back, when the device is short of memory."""
        self._kept.clear()
        self._empty.clear()

    def _encode(self, model: str, text: str, is_negative: bool) -> Encoding:
        return self._families[model].encode(text, is_negative=is_negative)


def _bytes_of(key: Key, encoding: Encoding) -> int:
    """With the whole storage behind a tensor, which a view of it keeps alive."""
    tensors = (encoding.prompt_embeds, encoding.pooled_embeds, encoding.attention_mask)
    stored = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    texts = (key[0], key[3], *encoding.warnings)
    return ENTRY_BYTES + stored + sum(sys.getsizeof(text) for text in texts)

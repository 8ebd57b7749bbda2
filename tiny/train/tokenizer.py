"""Builds the tiny model's `CLIPTokenizer`: every word of the caption language is one token.

Owns the vocabulary. Words outside the caption language become bytes, so any prompt is accepted. This module
does not know what the words mean.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

from tiny.scenes import BACKGROUND_COLOURS, OBJECT_COLOURS, PLACES, RELATIONS, SHAPES, SIZES

MAX_TOKENS = 32
EXTRA_WORDS = "a an and of on at in the to with is background image picture photo drawing big tiny grey , ."
START, END = "<|startoftext|>", "<|endoftext|>"


def caption_words() -> list[str]:
    """Every word that a caption can contain, sorted, without duplicates."""
    phrases = [*SHAPES, *OBJECT_COLOURS, *BACKGROUND_COLOURS, *PLACES, *SIZES, *RELATIONS, EXTRA_WORDS]
    return sorted({word for phrase in phrases for word in phrase.split()})


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Learn the byte-pair merges of the caption words (Sennrich et al. 2016) and save them in `folder`.

    A tokenizer that exists in `folder` is read instead: pairs of equal frequency are merged in an order that
    changes from run to run, and weights depend on the ids that they were trained with.
    """
    if (folder / "tokenizer.json").exists():
        return CLIPTokenizer.from_pretrained(folder)
    bpe = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator([word for word in caption_words() for _ in range(8)], trainer)
    learned = bpe.get_vocab()
    merges = _read_merges(bpe)
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    tokens += [token for token in sorted(learned, key=learned.__getitem__) if token not in set(tokens)]
    vocab = {token: index for index, token in enumerate([*tokens, START, END])}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS, pad_token=END)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _read_merges(bpe: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids `(B, 32)`, padded as `StableDiffusionPipeline` pads them."""
    token_ids: Tensor = tokenizer(
        captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    return token_ids

"""Builds small tokenizers of every kind that a diffusers pipeline takes, without a file.

Owns the vocabulary: the words of the prompts and of the pipelines' own instructions are one token each, all
else is spelled in letters or bytes. Token ids mean nothing; the text encoders have random weights. Every call
makes a new tokenizer: pipelines set the side that is padded, and it stays set.
"""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertTokenizer,
    ByT5Tokenizer,
    CLIPTokenizer,
    GemmaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    T5Tokenizer,
)

PROMPT = "a an the of on in red blue green yellow heart star ring square circle white black background"
INSTRUCTION = (
    "Describe image by detailing color shape size texture quantity text spatial relationships objects and "
    "key features input then explain how user's instruction should alter or modify Generate new that meets "
    "requirements while maintaining consistency with original where appropriate You are assistant designed "
    "to generate superior images degree alignment based textual prompts system user following Picture"
)
WORDS = tuple(f"{PROMPT} {INSTRUCTION}".split())
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<think>",
    "</think>",
)


def clip(pad_token: str = "<|endoftext|>") -> Any:
    """CLIP's byte pairs, 77 tokens long."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: dict[tuple[str, str], str] = {}
    for word in sorted({word.lower() for word in WORDS}):
        letters = [*word[:-1], word[-1] + "</w>"]
        piece = letters[0]
        for letter in letters[1:]:
            merges[piece, letter] = piece = piece + letter
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *merges.values()]
    tokens += ["<|startoftext|>", "<|endoftext|>", *({pad_token} - {"<|endoftext|>"})]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=list(merges), model_max_length=77, pad_token=pad_token)


def t5() -> Any:
    """T5's unigram pieces."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -3.0) for word in dict.fromkeys(word.lower() for word in WORDS)]
    pieces += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789,.:'{}\""]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def qwen() -> Any:
    """Qwen's byte pairs with its chat template; every token of the chat is there."""
    vocab, merges = _byte_pairs()
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, model_max_length=2048)
    tokenizer.add_special_tokens({"additional_special_tokens": list(CHAT_TOKENS[1:])})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def llama(padding_side: str = "right", chat_template: str = CHAT_TEMPLATE) -> Any:
    """Byte pairs behind a beginning-of-text token, as Llama, Mistral and GLM have them."""
    vocab, merges = _byte_pairs()
    for token in ("<pad>", "<s>", "</s>"):
        vocab[token] = len(vocab)
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side=padding_side,
        model_max_length=512,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(CHAT_TOKENS)})
    tokenizer.chat_template = chat_template
    return tokenizer


def gemma() -> Any:
    """Gemma's pieces, with a beginning-of-text token and bytes for what has no piece."""
    merges: dict[tuple[str, str], str] = {}
    for word in sorted(set(WORDS)):
        piece = "▁"
        for letter in word:
            merges[piece, letter] = piece = piece + letter
    letters = sorted({"▁", "\n", *"".join(WORDS)})
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {token: index for index, token in enumerate([*tokens, *letters, *merges.values()])}
    tokenizer = GemmaTokenizer(vocab=vocab, merges=list(merges), model_max_length=512)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def bert() -> Any:
    """BERT's word pieces, 77 tokens long."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.:'"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    tokens += [word.lower() for word in WORDS]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return BertTokenizer(vocab=vocab, model_max_length=77)


def byt5() -> Any:
    """ByT5's bytes."""
    return ByT5Tokenizer()


def _byte_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """GPT-2's byte alphabet and merges that spell each word from its start, alone and behind a space."""
    merges: dict[tuple[str, str], str] = {}
    for start in ("Ġ", ""):
        for word in sorted(set(WORDS)):
            piece = start or word[0]
            for letter in word if start else word[1:]:
                merges[piece, letter] = piece = piece + letter
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *merges.values()]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    vocab["<|endoftext|>"] = len(vocab)
    return vocab, list(merges)

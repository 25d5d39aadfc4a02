"""Text as it comes: no half characters, the same text in any pieces, stop strings cut."""

import itertools
import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tilewright.runtime.detokenizer import Detokenizer, StopFinder

TEXT = "Knights rode – 17 of them – to Þórr’s château; 日本語 and 🐉🐉 (👩‍👩‍👧) came: naïve façade. "


def make_byte_level():
    """One token per byte, as a byte-level BPE without merges: every character beyond ASCII comes in pieces."""
    vocab = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def make_byte_fallback():
    """Words with a leading space sign, bytes for the rest, first space stripped: as Llama 2's."""
    words = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), *(chr(c) for c in range(33, 127)), "▁", "▁a", "▁came"]
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


@pytest.mark.parametrize("make", [make_byte_level, make_byte_fallback])
def test_pieces_of_any_size_add_up_to_the_text_without_half_characters(make):
    tokenizer, dice = make(), random.Random(4)
    tokens = tokenizer.encode(TEXT * 3).ids
    for prompt_len in (1, 5, 18):
        whole = Detokenizer(tokenizer, tokens[:prompt_len]).feed(tokens[prompt_len:])
        assert tokenizer.decode(tokens[:prompt_len]) + whole == tokenizer.decode(tokens)
        for most in (1, 2, 7):
            stream, pieces, at = Detokenizer(tokenizer, tokens[:prompt_len]), [], prompt_len
            while at < len(tokens):
                count = dice.randint(1, most)
                pieces.append(stream.feed(tokens[at : at + count]))
                at += count
            assert "".join(pieces) == whole
            assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("make", [make_byte_level, make_byte_fallback])
def test_an_unfinished_character_at_the_end_is_left_out_and_nothing_else(make):
    tokenizer = make()
    tokens = tokenizer.encode("a" * 80 + "🐉🐉🐉").ids
    for cut_bytes in (1, 2, 3):
        assert Detokenizer(tokenizer, tokens[:1]).feed(tokens[1:-cut_bytes]).endswith("a🐉🐉")


def test_bytes_that_form_no_character_do_not_hold_text_back_for_ever():
    tokenizer = make_byte_level()
    (continuation,) = (i for c, i in tokenizer.get_vocab().items() if tokenizer.encode("Þ").tokens[1] == c)
    stream = Detokenizer(tokenizer, [0])
    text = "".join(stream.feed([continuation]) for _ in range(70)) + stream.feed(tokenizer.encode("ok").ids)
    assert text.endswith("ok") and text.count("\ufffd") == 70


def cut(stops, pieces):
    finder = StopFinder(stops)
    seen = []
    for piece in pieces:
        done = finder.feed(piece)
        seen.append(finder.text)
        if done:
            return finder.text, seen, True
    finder.flush()
    return finder.text, seen, False


def test_text_ends_before_the_first_stop_string():
    assert cut(("END", "\n\n"), ["one E", "N two\n", "three EN", "D four"])[::2] == ("one EN two\nthree ", True)


def test_what_may_begin_a_stop_string_is_held_back_and_no_more():
    _, seen, _ = cut(("aab",), ["xa", "a", "a", "c"])
    assert seen == ["x", "x", "xa", "xaaac"]


def test_held_back_text_comes_out_at_the_end():
    assert cut(("END",), ["the EN"])[::2] == ("the EN", False)


def test_random_texts_are_cut_as_by_a_search_of_the_whole():
    dice = random.Random(9)
    for _ in range(2000):
        stops = tuple("".join(dice.choices("ab", k=dice.randint(1, 4))) for _ in range(dice.randint(1, 3)))
        pieces = ["".join(dice.choices("abc", k=dice.randint(0, 3))) for _ in range(8)]
        text, seen, found = cut(stops, pieces)
        assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(seen))
        shown = next((i for i in range(9) if any(s in "".join(pieces[:i]) for s in stops)), None)
        assert found == (shown is not None)
        whole = "".join(pieces[:shown])
        assert text == (whole[: min(p for s in stops if (p := whole.find(s)) >= 0)] if found else whole)

"""The tokenizer as TensorFlow operations, which a SavedModel can hold.

It gives the ids of `sd_tf.text.tokenizer.Tokenizer`, with three exceptions: text is taken to be composed
(NFC), as keyboards give it; TensorFlow's tables of what is a letter may be of another Unicode version; NUL
and the last private characters become U+FFFD.
"""

import re

import tensorflow as tf

from sd_tf.errors import InputError
from sd_tf.text.prompts import MOST_PARTS
from sd_tf.text.tokenizer import END_OF_WORD, PIECES, WORDS, byte_characters

# Rust's and Python's; RE2's \s is of ASCII alone.
SPACES = r"[\s\v\p{Z}\x{85}]+"
FIRST_MARK = 0x10F000  # of a private plane: characters that stand for added tokens
MOST_BYTES = 4096  # of a prompt: time grows with the square of its longest word
NO_TOKEN = -1


class GraphTokenizer(tf.Module):
    """Strings to token ids.

    Args:
        tokenizer: the `Tokenizer` to follow.

    Raises:
        InputError: it has an added token that must stand alone (`single_word`), which no operation finds.
    """

    def __init__(self, tokenizer):
        super().__init__()
        vocab, unknown = tokenizer.vocab, tokenizer.token_id(tokenizer.special_tokens["unk_token"])
        characters = byte_characters()
        inside = [vocab.get(characters[byte], unknown) for byte in range(256)]
        last = [vocab.get(characters[byte] + END_OF_WORD, unknown) for byte in range(256)]
        self.first_ids = tf.constant([inside, last], tf.int64)
        self.size = tokenizer.vocab_size
        pairs = [vocab[first] * self.size + vocab[second] for first, second in tokenizer.merges]
        self.ranks = _table(pairs, range(len(pairs)), default=len(pairs))
        # One more than there are: what a pair that is never merged would become.
        self.merged = tf.constant([vocab[a + b] for a, b in tokenizer.merges] + [NO_TOKEN], tf.int64)
        self.marks = []  # (what finds an added token, what stands for it)
        whole = {}  # of words that are not divided
        marks = {token_id: chr(FIRST_MARK + i) for i, token_id in enumerate(sorted(tokenizer.added_tokens))}
        longest_first = sorted(tokenizer.added_tokens.items(), key=lambda item: -len(item[1].content))
        for token_id, token in longest_first:
            if token.single_word:
                raise InputError(
                    f"the added token {token.content!r} is a single_word: such are not exported, make it a "
                    "plain one"
                )
            standing = " ".join(marks[each] for each in tokenizer.continued.get(token_id, (token_id,)))
            ignoring_case = "(?i)" if token.normalized else ""
            self.marks.append((ignoring_case + re.escape(token.content), f" {standing} "))
            whole[marks[token_id].encode()] = token_id
        self.whole = _table(whole, whole.values(), NO_TOKEN, tf.string)
        self.begin, self.end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.padding, self.length = tokenizer.pad_token_id, tokenizer.max_length
        self.room = self.length - 2

    def ids(self, prompts):
        """Strings (n,) -> ragged int64 (n, None), without begin and end."""
        words = tf.strings.split(self._separated(prompts), " ")
        words = tf.ragged.boolean_mask(words, tf.strings.length(words) > 0)
        ids = tf.RaggedTensor.from_tensor(self._merged(words.flat_values), padding=NO_TOKEN)
        return words.with_flat_values(ids).merge_dims(1, 2)

    def numbers_of_parts(self, ids):
        """Of so many a prompt consists, int32 (n,): of the text tower's length each, one at least."""
        numbers = -(-ids.row_lengths() // self.room)
        return tf.cast(tf.clip_by_value(numbers, 1, MOST_PARTS), tf.int32)

    def rows(self, ids, parts):
        """Ids of prompts -> int32 (n, parts, length), which a text tower reads; what is more is cut off."""
        width = parts * self.room
        parted = [tf.shape(ids.row_lengths())[0], parts, self.room]
        number = tf.cast(tf.range(width), tf.int64)[tf.newaxis]
        there = number < ids.row_lengths()[:, tf.newaxis]
        ids = ids.to_tensor(default_value=0, shape=[None, None])[:, :width]
        ids = tf.pad(ids, [[0, 0], [0, width - tf.shape(ids)[1]]])
        ids, there = (tf.reshape(each, parted) for each in (ids, there))
        ids = tf.where(there, ids, self.padding)
        ids = tf.pad(ids, [[0, 0], [0, 0], [1, 1]], constant_values=self.padding)
        place = tf.range(self.length)
        end = tf.reduce_sum(tf.cast(there, tf.int32), axis=2, keepdims=True) + 1
        ids = tf.where(place == 0, tf.cast(self.begin, tf.int64), ids)
        return tf.cast(tf.where(place == end, tf.cast(self.end, tf.int64), ids), tf.int32)

    def _separated(self, prompts):
        """Words with spaces between them, and marks in the places of added tokens."""
        longest = tf.reduce_max(tf.concat([[0], tf.strings.length(prompts)], 0))
        message = f"a prompt is longer than {MOST_BYTES} bytes: shorten it"
        with tf.control_dependencies([tf.debugging.assert_less_equal(longest, MOST_BYTES, message)]):
            text = tf.strings.unicode_transcode(prompts, "UTF-8", "UTF-8")  # what is none becomes U+FFFD
        text = tf.strings.regex_replace(text, rf"[\x00\x{{{FIRST_MARK:X}}}-\x{{10FFFF}}]", "\ufffd")
        for pattern, mark in self.marks:
            text = tf.strings.regex_replace(text, pattern, mark)
        text = tf.strings.regex_replace(text, SPACES, " ")
        # Lowering a whole text, ICU would make another letter of it at the end of a word.
        text = tf.strings.regex_replace(text, "Σ", "σ")
        text = tf.strings.lower(text, encoding="utf-8")
        for pattern in (WORDS, PIECES):  # the byte level divides words once more
            text = tf.strings.regex_replace(text, pattern, r"\0 ")
        return text

    def _merged(self, words):
        """Words (n,) -> ids (n, longest), NO_TOKEN behind the last."""
        letters = tf.strings.bytes_split(words)
        codes = tf.reshape(tf.io.decode_raw(letters.flat_values, tf.uint8), [-1])
        codes = letters.with_flat_values(tf.cast(codes, tf.int32)).to_tensor(default_value=0)
        lengths = tf.cast(letters.row_lengths(), tf.int32)[:, tf.newaxis]
        place = tf.range(tf.shape(codes)[1])[tf.newaxis]
        is_last = tf.cast(place == lengths - 1, tf.int32)
        ids = tf.gather_nd(self.first_ids, tf.stack([is_last, codes], 2))
        ids = tf.where(place < lengths, ids, NO_TOKEN)
        whole = self.whole.lookup(words)[:, tf.newaxis]
        only = tf.where(place == 0, whole, tf.cast(NO_TOKEN, tf.int64))
        ids = tf.where(whole == NO_TOKEN, ids, only)
        ids = tf.pad(ids, [[0, 0], [0, 1]], constant_values=NO_TOKEN)  # every word then has a pair
        place = tf.range(tf.shape(ids)[1])[tf.newaxis]

        def ranks(ids):
            both = (ids[:, :-1] != NO_TOKEN) & (ids[:, 1:] != NO_TOKEN)
            found = self.ranks.lookup(ids[:, :-1] * self.size + ids[:, 1:])
            return tf.where(both, found, len(self.merged) - 1)

        def some_left(ids, ranks):
            return tf.reduce_any(ranks < len(self.merged) - 1)

        def merge(ids, of_pairs):
            """The pair of each word that was learned first, and of several such the leftmost."""
            best = tf.argmin(of_pairs, axis=1, output_type=tf.int32)[:, tf.newaxis]
            rank = tf.reduce_min(of_pairs, axis=1, keepdims=True)
            closed_up = tf.concat(
                [ids[:, 1:], tf.fill([tf.shape(ids)[0], 1], tf.cast(NO_TOKEN, tf.int64))], 1
            )
            merged = tf.where(place > best, closed_up, ids)
            merged = tf.where(place == best, tf.gather(self.merged, rank), merged)
            ids = tf.where(rank < len(self.merged) - 1, merged, ids)
            return ids, ranks(ids)

        shape = tf.TensorShape([None, None])
        ids, _ = tf.while_loop(some_left, merge, [ids, ranks(ids)], shape_invariants=[shape, shape])
        return ids


def _table(keys, values, default, kind=tf.int64):
    initializer = tf.lookup.KeyValueTensorInitializer(
        tf.constant(list(keys), kind), tf.constant(list(values), tf.int64)
    )
    return tf.lookup.StaticHashTable(initializer, default)

"""`spiece.model`, SentencePiece's file of a vocabulary and a normalisation, read without its library.

It is a protocol buffer: fields, each with a number, a type and a value. Those that are wanted are read within
bounds, and the compiled normalisation is walked through before anybody else looks things up in it.

Reference: google/sentencepiece, `src/sentencepiece_model.proto` and `src/normalizer.cc`; s-yata/darts-clone,
`include/darts.h`.
"""

import struct
from typing import NamedTuple

import numpy as np

from sd_tf.errors import InputError

MOST_PIECES = 1_000_000
UNIGRAM = 1
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # kinds of pieces
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # types of fields
IS_LEAF, HAS_LEAF = 1 << 31, 1 << 8  # of a unit of a double array


class SentencePieceModel(NamedTuple):
    """What a `spiece.model` says.

    Attributes:
        pieces: list of (piece, score), by id.
        unk_id: the id of what no piece covers.
        control, user_defined: ids of pieces that texts cannot have, and of those that are never split.
        charsmap: the compiled normalisation, empty for none.
    """

    pieces: list[tuple[str, float]]
    unk_id: int
    control: tuple[int, ...]
    user_defined: tuple[int, ...]
    charsmap: bytes


def read_sentencepiece(content: bytes, source) -> SentencePieceModel:
    """Reads the content of a `spiece.model`.

    Args:
        content: of the file.
        source: its name, for messages.

    Raises:
        InputError: it is damaged, or its model is none of unigrams.
    """
    try:
        pieces, kinds, unk_id, model_type, charsmap = [], [], 0, UNIGRAM, b""
        for number, value in _fields(content):
            if number == 1:
                piece, score, kind = _piece(_expected(value, bytes))
                pieces.append((piece, score))
                kinds.append(kind)
                if len(pieces) > MOST_PIECES:
                    raise ValueError(f"it has more than {MOST_PIECES} pieces")
            elif number == 2:  # of the training
                for inner, setting in _fields(_expected(value, bytes)):
                    if inner == 3:
                        model_type = _expected(setting, int)
                    elif inner == 40:
                        unk_id = _expected(setting, int)
            elif number == 3:  # of the normalisation
                for inner, setting in _fields(_expected(value, bytes)):
                    if inner == 2:
                        charsmap = bytes(_expected(setting, bytes))
        if not pieces:
            raise ValueError("it has no pieces")
        if model_type != UNIGRAM:
            raise ValueError(f"its model_type is {model_type}, only {UNIGRAM}, unigrams, is supported")
    except (ValueError, struct.error) as error:
        raise InputError(f"{source} is no readable SentencePiece model: {error}") from None
    control, user_defined = (
        tuple(i for i, each in enumerate(kinds) if each == kind) for kind in (CONTROL, USER_DEFINED)
    )
    return SentencePieceModel(pieces, unk_id, control, user_defined, charsmap)


def _piece(content):
    """(piece, score, kind); a field that is missing has protocol buffers' default."""
    piece, score, kind = "", 0.0, 1
    for number, value in _fields(content):
        if number == 1:
            piece = bytes(_expected(value, bytes)).decode("utf-8")
        elif number == 2:
            score = _expected(value, float)
        elif number == 3:
            kind = _expected(value, int)
    return piece, score, kind


def _fields(content):
    """(number, value) of each field: an int, a float of 32 bits, or bytes; those of 64 bits are left out."""
    content, place = memoryview(content), 0
    while place < len(content):
        tag, place = _varint(content, place)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, place = _varint(content, place)
        elif kind == FIXED32:
            [value] = struct.unpack_from("<f", content, place)
            place += 4
        elif kind == FIXED64:
            value, place = None, place + 8
        elif kind == BYTES:
            length, place = _varint(content, place)
            value = content[place : place + length]
            place += length
        else:
            raise ValueError(f"field {number} is of the type {kind}, which there is not")
        if place > len(content):
            raise ValueError("it ends within a field")
        yield number, value


def _varint(content, place):
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(content):
            raise ValueError("it ends within a number")
        byte = content[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("a number has more than ten bytes")


def _expected(value, kind):
    if not isinstance(value, memoryview if kind is bytes else kind):
        raise ValueError(f"a field is {type(value).__name__}, expected {kind.__name__}")
    return value


def check_charsmap(charsmap: bytes):
    """Raises `InputError` where looking something up in a compiled normalisation would leave it.

    It has the length of a double array, the array, and the texts that its values are places in. Every unit
    that may be a node leads to 256 others, and its value, if it has one, is where a character begins.

    Args:
        charsmap: as `SentencePieceModel.charsmap`.
    """
    length = int.from_bytes(charsmap[:4], "little")
    if len(charsmap) < 4 + 1024 or length % 1024 or not 1024 <= length <= len(charsmap) - 4:
        raise InputError(f"its compiled normalisation of {len(charsmap)} bytes is damaged: wrong length")
    units = np.frombuffer(charsmap, "<u4", length // 4, 4).astype(np.int64)
    texts = charsmap[4 + length :]
    try:
        texts.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError("its compiled normalisation is damaged: texts that are no UTF-8") from None
    nodes = np.flatnonzero(units & IS_LEAF == 0)
    offsets = (units[nodes] >> 10) << ((units[nodes] & 512) >> 6)
    bases = nodes ^ offsets
    if (bases | 255).max(initial=0) >= len(units):
        raise InputError("its compiled normalisation is damaged: a node leads out of its array")
    values = units[bases[units[nodes] & HAS_LEAF != 0]] & (IS_LEAF - 1)
    begins = np.frombuffer(texts + b"\0", np.uint8) & 0xC0 != 0x80  # of characters
    if (values > len(texts)).any() or not begins[np.minimum(values, len(texts))].all():
        raise InputError("its compiled normalisation is damaged: a value leads out of its texts")

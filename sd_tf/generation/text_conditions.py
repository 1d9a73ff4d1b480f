"""What prompts, or the embeddings in their place, tell a network: a condition for each picture."""

import numpy as np

from sd_tf.diffusion.conditions import Condition
from sd_tf.errors import InputError
from sd_tf.text.prompts import encode_prompts


def text_conditions(request, encoder, encoder_of_negatives=None) -> list[tuple[Condition, Condition]]:
    """(negative, positive) for each picture of a `Request`, each a `Condition` of one row.

    Args:
        request: the `Request`.
        encoder: a `TextEncoder` for prompts.
        encoder_of_negatives: one for negative prompts, if they are read by another.

    Raises:
        InputError: given embeddings have another width than the encoder's, or prompts and negative prompts
            differ in their tokens.
    """
    of_negatives = encoder_of_negatives or encoder
    if request.prompt_embeds is None and request.negative_prompt_embeds is None:
        pairs = _encoded_pairs(request, encoder)
        if of_negatives is not encoder:
            negatives = _encoded_pairs(request, of_negatives)
            pairs = [(of_whole[0], pair[1]) for of_whole, pair in zip(negatives, pairs, strict=True)]
    else:
        negatives = _given_or_encoded(
            request.negative_prompt_embeds, request.negative_prompts, request, of_negatives
        )
        positives = _given_or_encoded(request.prompt_embeds, request.prompts, request, encoder)
        _check_equal_lengths(negatives[0], positives[0])
        pairs = list(zip(negatives, positives, strict=True))
    return [tuple(pair) for pair in pairs for _ in range(request.num_images)]


def _encoded_pairs(request, encoder):
    """(negative, positive) for each prompt, with equally many tokens."""
    groups = list(zip(request.negative_prompts, request.prompts, strict=True))
    return [both.split(2) for both in encode_prompts(groups, encoder, request.batch_size, request.syntax)]


def _given_or_encoded(embeds, prompts, request, encoder):
    """A `Condition` of one row for each prompt, of its embeddings or else of its text."""
    if embeds is None:
        [found] = encode_prompts([prompts], encoder, request.batch_size, request.syntax)
    else:
        if embeds.shape[2] != encoder.width:
            raise InputError(
                f"prompt_embeds have the width {embeds.shape[2]}, this model's text encoder has "
                f"{encoder.width}: make them with it"
            )
        found = Condition(embeds, np.ones(embeds.shape[:2], bool))
    return found.split(len(prompts))


def _check_equal_lengths(negative, positive):
    tokens = [condition.context.shape[1] for condition in (negative, positive)]
    if tokens[0] != tokens[1]:
        raise InputError(
            f"negative prompts have {tokens[0]} tokens, prompts {tokens[1]}: give prompt_embeds and "
            "negative_prompt_embeds of equally many"
        )

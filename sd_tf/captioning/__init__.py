"""Describes pictures that have no captions, so that a model can be trained on them."""

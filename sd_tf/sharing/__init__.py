"""Puts models on the Hugging Face hub, each with a model card."""

"""Captioned pictures and the endless, resumable streams of batches made of them."""

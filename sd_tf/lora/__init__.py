"""LoRA and its kin, of no family: where they come from, their files, and their weights in a model."""

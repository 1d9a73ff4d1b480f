"""From captions to the tokens, states and features of CLIP."""

"""The mathematics of diffusion: schedules, denoisers, losses, guidance and samplers. No network lives here.

A *network* is any function `network(latents, timesteps, context) -> output`. A *denoiser* is any
function `denoise(x, t) -> Prediction`; samplers know nothing else.
"""

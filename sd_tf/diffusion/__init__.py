"""The mathematics of diffusion: schedules, denoisers, losses, guidance and samplers. No network lives here.

A *network* is any function `network(latents, timesteps, condition) -> output`, where the condition is a
`sd_tf.diffusion.conditions.Condition`. A *denoiser* is any function `denoise(x, level) -> Prediction`.
Samplers know nothing else. Guidance, inpainting and thresholding wrap one denoiser in another.
"""

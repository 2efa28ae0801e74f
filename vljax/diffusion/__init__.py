"""Diffusion as functions of a denoiser: schedules, the process, losses, likelihood, samplers.

Read `schedules`, `process`, then what you need: `losses` and `timesteps` train (`latent` the
autoencoder of latent diffusion), `likelihood` judges, `samplers` generate and invert, `guidance`
pulls them to what scores ask for, `editing` changes a given picture, `noise` belongs to an example,
`progress` shows where a running sampler is.
"""

"""How unCLIP's prior learns and draws: diffusion of embeddings, one vector an example.

Ramesh et al., *Hierarchical Text-Conditional Image Generation with CLIP Latents* (2022), section
2.2. The network predicts the clean embedding, under the squared error (equation 2).

An embedding is a picture of one pixel to `vljax.diffusion`, [b 1 1 e].
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vljax.diffusion.editing import guided
from vljax.diffusion.losses import denoising_loss
from vljax.diffusion.noise import start_noise
from vljax.diffusion.process import Denoiser, Process
from vljax.diffusion.samplers import ddpm
from vljax.diffusion.timesteps import UniformTimesteps
from vljax.errors import UserError
from vljax.models.clip import CLIP
from vljax.models.parameters import copied
from vljax.models.prior import PriorTransformer
from vljax.ops.similarity import cosine

#: A text: its embedding, its positions' features, which of them are no padding.
Text = tuple[Float[Array, "b e"], Float[Array, "b n e"], Bool[Array, "b n"]]


def read_text(clip: CLIP, tokens: Int[Array, "b n"]) -> Text:
    """A text as the prior takes it, from CLIP; no gradient reaches CLIP.

    Args:
        clip: Its text tower is as wide as its embeddings are long.
        tokens: With start and end; what follows the end, the largest token, is padding.

    Raises:
        UserError: CLIP's tower has another width.
    """
    hidden = clip.hidden_states(tokens).astype(jnp.float32)
    length = clip.text_projection.shape[1]
    if hidden.shape[-1] != length:
        raise UserError(
            f"text_width={hidden.shape[-1]} and embed_dim={length} of CLIP differ: the prior needs "
            "them alike, as in ViT-L/14"
        )
    real = jnp.arange(tokens.shape[1]) <= tokens.argmax(1)[:, None]
    return jax.lax.stop_gradient((clip.encode_text(tokens), hidden, real))


def prior_loss(
    prior: PriorTransformer,
    process: Process,
    embedding: Float[Array, "b e"],
    text: Text,
    key: Key[Array, ""],
) -> Float[Array, ""]:
    """E ‖f(z_t, t, text) − z‖² of whitened embeddings, averaged over their values (equation 2).

    Args:
        prior: The network.
        process: With the schedule of training; it predicts x_0.
        embedding: Of pictures, by CLIP.
        text: Of each, from `read_text`; of the empty text for a tenth of them.
        key: Draws times and noise.
    """
    clean = prior.whiten(embedding)[:, None, None]
    timesteps = UniformTimesteps(len(process.schedule))
    return denoising_loss(process, _denoiser(prior, text), clean, jax.random.split(key), timesteps)[
        0
    ]


def measured(prior: PriorTransformer, embeddings: Float[Array, "b e"]) -> PriorTransformer:
    """The prior with the mean and the deviation of some pictures' embeddings, for `whiten`."""
    begun = copied(prior)
    begun.clip_mean[...] = embeddings.mean(0, keepdims=True)
    begun.clip_std[...] = embeddings.std(0, keepdims=True) + 1e-6
    return begun


def draw_embeddings(
    prior: PriorTransformer,
    process: Process,
    text: Text,
    without: Text,
    guidance_scale: Float[Array, ""] | float,
    keys: Key[Array, " b"],
    *,
    limit: float = 10.0,
) -> Float[Array, "b e"]:
    """Embeddings of pictures of texts, by ancestral steps under classifier-free guidance.

    Args:
        prior: The network.
        process: Respaced; it predicts x_0.
        text: What is asked for.
        without: The empty text, or what shall not be, for each.
        guidance_scale: w of cond + w·(cond − uncond); traced.
        keys: One a picture.
        limit: Predicted values, whitened, are clipped to ± this; 5 in Karlo, 10 in Kandinsky.
    """
    both = jax.tree.map(lambda one, other: jnp.concatenate([one, other]), text, without)
    free = guided(_denoiser(prior, both), guidance_scale)

    def denoiser(x: Float[Array, "b 1 1 e"], t: Int[Array, " b"]) -> Array:
        return jnp.clip(free(x, t), -limit, limit)

    noise = start_noise(keys, (1, 1, prior.clip_mean.shape[-1]))
    return prior.unwhiten(ddpm(process, denoiser, noise, keys, clip=False)[:, 0, 0])


def nearest(candidates: Float[Array, "k b e"], text: Float[Array, "b e"]) -> Float[Array, "b e"]:
    """Of candidates the nearest to the text; unCLIP draws two (end of section 2.2)."""
    scores = jax.vmap(cosine, (0, None))(candidates, text)
    return jnp.take_along_axis(candidates, scores.argmax(0)[None, :, None], axis=0)[0]


def _denoiser(prior: PriorTransformer, text: Text) -> Denoiser:
    return lambda x, t: prior(x[:, 0, 0], t, *text)[:, None, None]

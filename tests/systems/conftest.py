"""A recipe, trained and judged through its doors."""

import json

import pytest

from vljax import evaluate, train
from vljax.data.scenes import VOCABULARY
from vljax.data.text.tokenizers import train_tokenizer


@pytest.fixture(scope="session")
def learn():
    """`learn(recipe, workdir)`: the results of training and evaluation, also printed as a table."""

    def run(recipe, workdir, *, train_flags=(), evaluate_flags=()):
        assert train.main(("--config", str(recipe), *train_flags, "--workdir", str(workdir))) == 0
        assert evaluate.main(("--workdir", str(workdir), *evaluate_flags)) == 0
        print((workdir / "evaluation" / "results.md").read_text())
        return json.loads((workdir / "evaluation" / "results.json").read_text())

    return run


@pytest.fixture(scope="session")
def tiny_stable_diffusion(tmp_path_factory):
    """A folder as `diffusers` and `transformers` write it, and its networks: U-Net, VAE, text.

    Its tokenizer has the words of scenes: 702 tokens, of which the last two start and end texts.
    """
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("stable_diffusion")
    unet = {"attention_head_dim": 2}
    return folder, _write_pipeline(folder, torch, diffusers, transformers, unet)


@pytest.fixture(scope="session")
def tiny_inpainting(tmp_path_factory):
    """Likewise, of the form of Stable Diffusion 2's inpainting: nine channels, "!" pads."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("inpainting")
    unet = {"attention_head_dim": (1, 2), "in_channels": 9, "use_linear_projection": True}
    unet |= {"sample_size": 64}  # its pipeline asks
    networks = _write_pipeline(folder, torch, diffusers, transformers, unet, hidden_act="gelu")
    (folder / "tokenizer" / "special_tokens_map.json").write_text('{"pad_token": "!"}')
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.save_pretrained(folder / "scheduler")
    return folder, (*networks, scheduler)


def _write_pipeline(folder, torch, diffusers, transformers, unet, **text):
    """A tiny pipeline's folder, and its networks."""
    tokenizer = train_tokenizer(VOCABULARY, 2000)
    (folder / "tokenizer").mkdir()
    tokenizer.save(folder / "tokenizer" / "tokenizer.json")
    torch.set_num_threads(1)  # so small networks gain nothing from more
    torch.manual_seed(0)
    network = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        norm_num_groups=8,
        **unet,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
    )
    text_encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            hidden_size=16,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=tokenizer.vocabulary_size,
            **text,
        )
    )
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            # Attention that matters: flat maps would hide a mask that does nothing.
            parameter *= 3.0 if "to_" in name else 1.0
            parameter += 0.1 * torch.randn_like(parameter) if parameter.ndim == 1 else 0.0
            # Small predictions, as a trained network's are for a picture of little contrast.
            parameter *= 0.1 if "conv_out" in name else 1.0
        vae.quant_conv.weight *= 30.0  # latents of about unit variance
    networks = network.eval(), vae.eval(), text_encoder.eval()
    for name, part in zip(("unet", "vae", "text_encoder"), networks, strict=True):
        part.save_pretrained(folder / name)
    return networks

"""The text-conditional U-Net against torch `diffusers`, same random weights."""

import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from vljax import pretrained
from vljax.errors import UserError
from vljax.models.conditional_unet import ConditionalUNet
from vljax.models.control import Place, drop_keys, inside_outside
from vljax.models.folders import unet_arguments
from vljax.models.parameters import named_parameters
from vljax.ops.attention import attention

pytestmark = pytest.mark.usefixtures("quick_to_compile")

SMALL = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}
NETWORKS = {
    "sd1": SMALL,
    "inpainting": {**SMALL, "in_channels": 9},
    "sd2": {
        **SMALL,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": (2, 8),
        "use_linear_projection": True,
    },
    "full": {"sample_size": 64, "cross_attention_dim": 768},
    "full_sd2_inpainting": {
        "sample_size": 64,
        "in_channels": 9,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
}


@pytest.fixture(scope="module", autouse=True)
def peers():
    """Imported when the first test runs, not when tests are collected."""
    global torch, diffusers
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")


def peer_of(name, folder, **saving):
    """A `diffusers` network with random weights, saved to a folder."""
    torch.manual_seed(0)
    peer = diffusers.UNet2DConditionModel(**NETWORKS[name]).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    peer.save_pretrained(folder, **saving)
    return peer


def skeleton_of(folder, **changes):
    arguments = {**unet_arguments(folder), **changes}
    return jax.eval_shape(lambda: ConditionalUNet(**arguments, rngs=nnx.Rngs(0)))


def inputs(peer, size=(8, 12), batch=2, tokens=77):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((batch, *size, peer.config.in_channels), dtype=np.float32)
    features = peer.config.cross_attention_dim
    context = rng.standard_normal((batch, tokens, features), dtype=np.float32)
    return x, np.array([12.0, 871.0], np.float32)[:batch], context


def torch_inputs(x, t, context):
    return torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(t), torch.from_numpy(context)


def assert_close(actual, expected, relative=1e-4):
    expected = expected.detach().permute(0, 2, 3, 1).numpy()
    error = np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()
    assert error <= relative, f"relative error {error:.1e}"
    return error


@pytest.mark.parametrize("name", [pytest.param("inpainting", marks=pytest.mark.slow), "sd2"])
def test_output_matches_diffusers(name, tmp_path):
    peer = peer_of(name, tmp_path, max_shard_size="200KB" if name == "sd2" else "5GB")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (name == "sd2")
    model = pretrained.load(skeleton_of(tmp_path), tmp_path)
    x, t, context = inputs(peer)
    with torch.no_grad():
        expected = peer(*torch_inputs(x, t, context)).sample
    assert_close(jax.jit(lambda model, *a: model(*a))(model, x, t, context), expected)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unet")
    peer = peer_of("sd1", folder)
    return peer, folder, pretrained.load(skeleton_of(folder), folder)


def test_output_and_gradients_match_diffusers(small):
    """With rematerialisation, and with Inside-Outside Attention that keeps nothing apart."""
    peer, folder, _ = small
    recomputing = pretrained.load(skeleton_of(folder, remat=True), folder)
    x, t, context = inputs(peer)
    theirs = torch_inputs(x, t, context)
    for tensor in (theirs[0], theirs[2]):
        tensor.requires_grad_()
    expected = peer(*theirs).sample
    expected.square().sum().backward()

    @jax.jit
    def run(model, x, t, context, shape):
        def loss(x, context):
            control = inside_outside(shape, split=None, rule="corner")
            y = model(x, t, context, control=control)
            return (y**2).sum(), y

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(x, context)

    shape = np.ones((1, 64, 96), np.float32)
    (to_x, to_context), y = run(recomputing, x, t, context, shape)
    assert_close(y, expected)
    assert_close(to_x, theirs[0].grad)
    expected = theirs[2].grad.numpy()
    np.testing.assert_allclose(to_context, expected, atol=1e-4 * np.abs(expected).max())


class MaskedProcessor:
    """Algorithm 3 in torch: the map itself, column by column of each side, kept for comparison."""

    def __init__(self, name, shape, size):
        self.name, self.shape, self.size = name, shape, size

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        weights = (query @ key.transpose(-1, -2) * attn.scale).softmax(-1)
        shrink = int((self.size[0] * self.size[1] // query.shape[2]) ** 0.5)
        size = [side // shrink for side in self.size]
        m = torch.nn.functional.interpolate(self.shape[None, None], size).flatten()
        if encoder_hidden_states is None:
            inside = m == 1
        else:
            inside = torch.arange(77) <= 38
        weights[..., inside] = weights[..., inside] * m[:, None]
        weights[..., ~inside] = weights[..., ~inside] * (1 - m)[:, None]
        if encoder_hidden_states is not None:
            weights[..., 0] = 0
        self.weights = weights
        return attn.to_out[0]((weights @ value).transpose(1, 2).flatten(2))


def test_inside_outside_attention_matches_a_masked_diffusers_network(small):
    """Algorithm 3 in every layer, its maps handed out, one compilation for all masks."""
    chex.clear_trace_counter()
    peer, _, model = small
    x, t, context = inputs(peer)
    plain = peer.attn_processors
    rng = np.random.default_rng(2)
    shapes = {"random": rng.random((50, 75)) < 0.5, "empty": np.zeros((50, 75), bool)}

    @jax.jit
    @chex.assert_max_traces(1)
    def run(model, x, t, context, shape):
        control = inside_outside(shape, rule="corner", record=lambda place: place.kind == "cross")
        return model.observed(x, t, context, control=control)

    for shape in shapes.values():
        shape = shape.astype(np.float32)
        processors = {
            name: MaskedProcessor(name, torch.from_numpy(shape), x.shape[1:3]) for name in plain
        }
        peer.set_attn_processor(dict(processors))
        with torch.no_grad():
            expected = peer(*torch_inputs(x, t, context)).sample
        peer.set_attn_processor(dict(plain))
        y, records = run(model, x, t, context, shape[None])
        assert_close(y, expected)
        assert {f"{name}.processor" for name in records} == {n for n in plain if "attn2" in n}
        for name, weights in records.items():
            theirs = processors[f"{name}.processor"].weights.numpy()
            np.testing.assert_allclose(weights, theirs, atol=1e-5)


def test_a_control_sees_every_attention_with_its_place(small):
    peer, _, model = small
    places = []

    def control(query, key, value, place):
        assert query.shape[1] == place.height * place.width
        assert key.shape[1] == (query.shape[1] if place.kind == "self" else 77)
        places.append(place)
        return attention(query, key, value), query.mean()

    _, records = jax.eval_shape(lambda *a: model.observed(*a, control=control), *inputs(peer))
    assert {f"{place.name}.processor" for place in places} == set(peer.attn_processors)
    assert len(places) == len(set(places)) == len(records)
    sizes = {place.name.partition(".")[0]: (place.height, place.width) for place in places}
    assert sizes == {"down_blocks": (8, 12), "mid_block": (4, 6), "up_blocks": (8, 12)}
    kinds = {place.name[-5:]: place.kind for place in places}
    assert kinds == {"attn1": "self", "attn2": "cross"}


def maps(control, name, kind, batch=64, keys=40):
    """The attention maps of a control, [b queries keys], and those of plain attention."""
    query, key = np.random.default_rng(0).standard_normal((2, batch, keys, 1, 8), np.float32)
    value = jnp.broadcast_to(jnp.eye(keys)[:, None], (batch, keys, 1, keys))
    seen, _ = control(query, key, value, Place(name, kind, 5, 8))
    return np.asarray(seen[:, :, 0]), np.asarray(attention(query, key, value)[:, :, 0])


def test_dropped_keys_are_lost_to_all_queries_and_not_made_up_for():
    control = drop_keys(jax.random.key(0), 64, 0.5)
    seen, plain = maps(control, "a.attn1", "self")
    lost = (seen == 0).all(1)
    expected = np.where(lost[:, None], 0, plain)
    np.testing.assert_allclose(seen, expected, atol=1e-7)
    # Half of the examples lose nothing, the others anything from nothing to all.
    losers = lost.mean(1)[lost.any(1)]
    assert 20 < len(losers) < 44
    assert losers.min() < 0.2
    assert losers.max() > 0.8


def test_every_layer_and_kind_drops_keys_of_its_own():
    control = drop_keys(jax.random.key(0), 64, 1.0)
    one, again, other, cross = (
        (maps(control, *place)[0] == 0).all(1)
        for place in (
            ("a.attn1", "self"),
            ("a.attn1", "self"),
            ("b.attn1", "self"),
            ("a.attn2", "cross"),
        )
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).mean() > 0.1
    # An example loses as much in every layer, but not as much of its text as of its pixels.
    assert np.corrcoef(one.mean(1), other.mean(1))[0, 1] > 0.8
    assert abs(np.corrcoef(one.mean(1), cross.mean(1))[0, 1]) < 0.5


def test_nobody_need_drop_keys():
    seen, plain = maps(drop_keys(jax.random.key(0), 64, 0.0), "a.attn1", "self")
    np.testing.assert_array_equal(seen, plain)


def test_bfloat16_keeps_the_result(small):
    peer, folder, _ = small
    model = pretrained.load(skeleton_of(folder, dtype="bfloat16"), folder)
    x, t, context = inputs(peer)
    y = jax.jit(lambda model, *a: model(*a))(model, x, t, context)
    assert y.dtype == jnp.float32
    with torch.no_grad():
        error = assert_close(y, peer(*torch_inputs(x, t, context)).sample, relative=0.05)
    assert error > 1e-4, "nothing was computed in bfloat16"


def test_a_folder_of_another_network_is_refused_with_the_whole_list(small, tmp_path):
    _, folder, _ = small
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    missing = ["conv_in.bias", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"]
    for name in missing:
        del tensors[name]
    tensors["class_embedding.weight"] = np.zeros((3, 4), np.float32)
    misshapen = "up_blocks.1.resnets.0.conv1.weight"
    tensors[misshapen] = tensors[misshapen][:-1]
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError) as error:
        pretrained.load(skeleton_of(folder), tmp_path)
    message = str(error.value)
    assert f"2 missing: {', '.join(missing)}" in message
    assert "1 surplus: class_embedding.weight" in message
    assert f"1 misshapen: {misshapen}" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "UNet2DModel"}, "'UNet2DModel'"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type='text_time'"),
        ({"mid_block_type": None}, "mid_block_type=None"),
        ({"transformer_layers_per_block": [1, 2]}, "transformer_layers_per_block=.1, 2"),
        ({"down_block_types": ["AttnDownBlock2D"]}, "'AttnDownBlock2D'"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "up_block_types="),
        ({"something_new": "yes"}, "something_new='yes'"),
    ],
)
def test_other_architectures_are_refused(small, tmp_path, change, words):
    config = json.loads((small[1] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=words):
        unet_arguments(tmp_path)


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a readable config"):
        unet_arguments(tmp_path)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        pytest.param("full", 859_520_964, marks=pytest.mark.slow),
        ("full_sd2_inpainting", 865_925_124),
    ],
)
def test_the_published_config_gives_the_published_network(tmp_path, name, count):
    """Every tensor of Stable Diffusion 1.5 or 2's inpainting by name and shape, none computed."""
    with torch.device("meta"):
        peer = diffusers.UNet2DConditionModel(**NETWORKS[name])
    peer.save_config(tmp_path)
    ours = named_parameters(skeleton_of(tmp_path))
    theirs = peer.state_dict()
    assert ours.keys() == theirs.keys()
    assert sum(p.size for p in ours.values()) == count
    assert all(ours[name].size == theirs[name].numel() for name in ours)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attention_levels": (True,)}, "attention_levels=.True. has 1 entries for the 4 levels"),
        ({"num_heads": (8, 8)}, "num_heads=.8, 8. has 2 entries"),
        ({"block_out_channels": (320, 650, 1280, 1280)}, "650, not a multiple of norm_groups=32"),
        ({"num_heads": 7}, "num_heads=7 does not divide"),
    ],
)
def test_impossible_configurations_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        ConditionalUNet(**change, rngs=nnx.Rngs(0))


def test_latents_that_cannot_be_halved_are_refused(small):
    peer, _, model = small
    with pytest.raises(UserError, match="latents of 7×12 do not divide by 2"):
        model(*inputs(peer, size=(7, 12)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "full_sd2_inpainting"])
def test_full_size_matches_diffusers(tmp_path: Path, name):
    """At 64×64: 860 million parameters, about 11 GB of memory and minutes."""
    peer = peer_of(name, tmp_path)
    x, t, context = inputs(peer, size=(64, 64), batch=1)
    with torch.no_grad():
        expected = peer(*torch_inputs(x, t, context)).sample
    del peer
    model = pretrained.load(skeleton_of(tmp_path), tmp_path)
    y = jax.jit(lambda model, *a: model(*a))(model, x, t, context)
    print(f"\n{name} U-Net: relative error {assert_close(y, expected):.1e}")

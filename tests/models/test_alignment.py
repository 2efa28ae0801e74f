"""Semantic alignment: grids, similarities, choices; the mask prompt against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.golden_weights import random_tensor
from vljax import pretrained
from vljax.data.scenes import VOCABULARY
from vljax.data.text.tokenizers import train_tokenizer
from vljax.errors import UserError
from vljax.models.alignment import (
    VILD_TEMPLATES,
    by_masked_crops,
    by_tokens,
    choose,
    choose_in_line,
    grid_to_mask,
    mask_to_grid,
    masked_crops,
    own_pieces,
    similarity_map,
    word_patches,
)
from vljax.models.clip import CLIP, PUBLISHED
from vljax.models.clip_towers import PIXEL_MEAN, normalise_pixels
from vljax.models.parameters import named_parameters
from vljax.ops.similarity import normalise

pytestmark = pytest.mark.usefixtures("quick_to_compile")

SMALL = {
    "embed_dim": 24,
    "image_size": 32,
    "vision_layers": 4,
    "vision_width": 32,
    "patch_size": 8,
    "context_length": 16,
    "vocabulary_size": 702,
    "text_width": 32,
    "text_layers": 1,
    "head_channels": 16,
    "mask_prompts": 3,
}


@pytest.fixture(scope="module")
def clip():
    return CLIP(**SMALL, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(VOCABULARY, 702)


def blocks(*boxes, size=(32, 48)):
    masks = np.zeros((len(boxes), *size), bool)
    for mask, (top, left, bottom, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return masks


def picture(size=(32, 48), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


# The mask prompt ---------------------------------------------------------------------------------


def transcribed(torch, weights, images, mask, patch=8, heads=2):
    """OVSeg's image tower with its mask prompt (facts of its CLIP fork, written anew)."""
    F = torch.nn.functional
    w = {name: torch.tensor(tensor) for name, tensor in weights.items()}
    x = F.conv2d(images, w["visual.conv1.weight"], stride=patch).flatten(2).transpose(1, 2)
    kept = F.avg_pool2d(mask[:, None], patch).flatten(1)[..., None].ceil()
    prompts = w["visual.mask_embedding"]
    x = x * kept + prompts[0] * (1 - kept)
    first = w["visual.class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([first, x], 1) + w["visual.positional_embedding"]

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    x = norm(x, "visual.ln_pre")
    for i in range(SMALL["vision_layers"]):
        name = f"visual.transformer.resblocks.{i}"
        y = norm(x, f"{name}.ln_1").transpose(0, 1)
        attended, _ = F.multi_head_attention_forward(
            *(y, y, y, y.shape[-1], heads),
            *(w[f"{name}.attn.in_proj_weight"], w[f"{name}.attn.in_proj_bias"]),
            *(None, None, False, 0.0),
            *(w[f"{name}.attn.out_proj.weight"], w[f"{name}.attn.out_proj.bias"]),
            training=False,
            need_weights=False,
        )
        x = x + attended.transpose(0, 1)
        y = F.linear(
            norm(x, f"{name}.ln_2"), w[f"{name}.mlp.c_fc.weight"], w[f"{name}.mlp.c_fc.bias"]
        )
        y = y * torch.sigmoid(1.702 * y)
        x = x + F.linear(y, w[f"{name}.mlp.c_proj.weight"], w[f"{name}.mlp.c_proj.bias"])
        if i + 1 < len(prompts):
            patches = x[:, 1:] * kept + prompts[i + 1] * (1 - kept)
            x = torch.cat([x[:, :1], patches], 1)
    return norm(x[:, 0], "visual.ln_post") @ w["visual.proj"]


def test_ovsegs_file_loads_by_name_and_equals_a_transcription(tmp_path):
    torch = pytest.importorskip("torch")
    skeleton = jax.eval_shape(lambda: CLIP(**SMALL, rngs=nnx.Rngs(0)))
    layouts = pretrained.checkpoint.variables(skeleton)
    weights = {}
    for name, shape in named_parameters(skeleton).items():
        tensor = random_tensor(name, shape.shape) if shape.shape else np.float32(1.0)
        weights[name] = pretrained.to_published(np.asarray(tensor, np.float32), layouts[name])
    held = {f"clip_adapter.clip_model.{n}": torch.tensor(t) for n, t in weights.items()}
    held["sem_seg_head.predictor.query_embed.weight"] = torch.zeros(2, 2)
    torch.save({"model": held, "__author__": "OVSeg"}, tmp_path / "ovseg.pth")
    loaded = jax.tree.map(jnp.asarray, pretrained.load(skeleton, tmp_path / "ovseg.pth"))

    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)
    mask = np.zeros((3, 32, 32), np.float32)
    mask[0, 9:20, 3:25] = 1
    mask[1, 31, 31] = 1
    mask[2] = 1
    ours = jax.jit(lambda clip, x, m: clip.encode_image(x, mask=m))(loaded, images, mask)
    seen = torch.tensor(np.moveaxis(np.asarray(normalise_pixels(images)), -1, 1).copy())
    with torch.no_grad():
        theirs = transcribed(torch, weights, seen, torch.tensor(mask)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max(), rtol=1e-4)
    plain = jax.jit(lambda clip, x: clip.encode_image(x))(loaded, images)
    np.testing.assert_allclose(plain[2], ours[2], rtol=1e-4, atol=1e-4)
    assert np.abs(plain[0] - ours[0]).max() > 1e-2


def test_the_published_form_has_ovsegs_shape():
    few_layers = {**PUBLISHED["ViT-L/14"], "vision_layers": 3, "text_layers": 1}
    skeleton = jax.eval_shape(lambda: CLIP(**few_layers, mask_prompts=3, rngs=nnx.Rngs(0)))
    assert named_parameters(skeleton)["visual.mask_embedding"].shape == (3, 256, 1024)
    with pytest.raises(UserError, match="mask_prompts=5"):
        jax.eval_shape(lambda: CLIP(**{**SMALL, "mask_prompts": 5}, rngs=nnx.Rngs(0)))
    with pytest.raises(UserError, match="no mask prompts"):
        jax.eval_shape(lambda: CLIP(**PUBLISHED["RN50"], mask_prompts=1, rngs=nnx.Rngs(0)))


# Masks and tokens --------------------------------------------------------------------------------


def test_bilinear_reads_the_middle_pixels_and_max_reads_all():
    mask = np.zeros((64, 64), bool)
    mask[7, 7] = mask[40, 16] = True  # a middle pixel of the first cell, a corner of another
    found = mask_to_grid(mask, (4, 4))
    assert found.sum() == 1
    assert found[0, 0]
    widest = mask_to_grid(mask, (4, 4), "max")
    assert widest.sum() == 2
    assert widest[2, 1]
    with pytest.raises(UserError, match="mask_resize='nearest'"):
        mask_to_grid(mask, (4, 4), "nearest")


@pytest.mark.parametrize("size", [(64, 64), (50, 37)])
def test_grids_are_torchs(size):
    torch = pytest.importorskip("torch")
    masks = np.random.default_rng(0).random((3, *size)) < 0.05
    given = torch.tensor(masks.astype(np.float32))[None]
    bilinear = torch.nn.functional.interpolate(given, (16, 16), mode="bilinear")[0] > 0
    np.testing.assert_array_equal(mask_to_grid(masks, (16, 16)), bilinear.numpy())
    pooled = torch.nn.functional.adaptive_max_pool2d(given, 16)[0] > 0
    np.testing.assert_array_equal(mask_to_grid(masks, (16, 16), "max"), pooled.numpy())


def test_pixels_are_of_the_token_in_which_their_middle_lies():
    """Also of pictures whose sides are no multiple of the grid's."""
    grid = np.random.default_rng(0).random((2, 3)) < 0.5
    expected = grid[[0, 0, 1, 1, 1]][:, [0, 1, 1, 2]]
    np.testing.assert_array_equal(grid_to_mask(grid, (5, 4)), expected)


def test_a_words_own_pieces(tokenizer):
    tokens, own = own_pieces(tokenizer, "red circle", 16)
    assert tokenizer.decode(tokens[:, own[0]])[0] == "red circle"
    with pytest.raises(UserError, match=r"entity '' has 0 tokens"):
        own_pieces(tokenizer, "", 16)
    with pytest.raises(UserError, match="give a word of 1 to"):
        own_pieces(tokenizer, "circle " * 20, 16)


# Similarities ------------------------------------------------------------------------------------


def test_an_entitys_similarity_is_the_mean_of_its_tokens(clip, tokenizer):
    photo = picture((32, 32))
    masks = blocks((0, 0, 16, 16), (8, 16, 32, 32), (0, 0, 1, 1), size=(32, 32))
    seen = normalise(clip.image_tokens(jnp.asarray(photo[None] / 127.5 - 1.0)))[0]
    tokens, own = own_pieces(tokenizer, "red circle", 16)
    told = normalise(clip.text_tokens(jnp.asarray(tokens)))[0][own[0]]
    best = np.asarray(seen @ told.T).max(1).reshape(4, 4)
    np.testing.assert_allclose(
        similarity_map(clip, tokenizer, photo, "red circle"), best, rtol=1e-4, atol=1e-5
    )
    found = by_tokens(clip, tokenizer, photo, masks, "red circle")
    np.testing.assert_allclose(found[:2], [best[:2, :2].mean(), best[1:, 2:].mean()], rtol=1e-4)
    assert found[2] == -np.inf
    assert word_patches(best, best.max()).sum() == 1


def test_crops_are_cut_filled_and_stretched():
    torch = pytest.importorskip("torch")
    photo, masks = picture(), blocks((4, 8, 20, 40), (0, 0, 0, 0))
    masks[0, 4:8, 8:12] = False
    crops, small = masked_crops(photo, masks, 24)
    cut = np.where(masks[0, 4:20, 8:40, None], photo[4:20, 8:40] / 255.0, PIXEL_MEAN)
    cut = torch.tensor(np.moveaxis(cut, -1, 0), dtype=torch.float32)[None]
    theirs = torch.nn.functional.interpolate(cut, (24, 24), mode="bicubic")[0].numpy()
    np.testing.assert_allclose(np.moveaxis(crops[0], -1, 0), theirs * 2 - 1, atol=2e-5)
    inside = torch.tensor(masks[0, 4:20, 8:40], dtype=torch.float32)[None, None]
    nearest = torch.nn.functional.interpolate(inside, (24, 24), mode="nearest")[0, 0]
    np.testing.assert_array_equal(small[0], nearest.numpy())
    assert not small[1].any()
    np.testing.assert_allclose(crops[1] - np.float32(np.array(PIXEL_MEAN) * 2 - 1), 0, atol=1e-6)


def test_more_entities_are_the_same_program_and_others_are_taken_off(clip, tokenizer, compilations):
    photo, masks = picture(), blocks((4, 8, 20, 40), (0, 0, 9, 9), (0, 0, 0, 0))
    few = by_masked_crops(clip, tokenizer, photo, masks, "circle", templates=("a {}", "{}"))
    assert few[2] == -np.inf
    compilations()
    many = np.concatenate([masks, blocks(*[(i, i, i + 6, i + 9) for i in range(9)])])
    found = by_masked_crops(clip, tokenizer, photo, many, "red star", templates=("a {}", "{}"))
    again = by_masked_crops(
        clip,
        tokenizer,
        picture((20, 30), 1),
        blocks((1, 1, 9, 9), size=(20, 30)),
        "circle",
        templates=("a {}", "{}"),
    )
    assert compilations() == 0
    assert np.isfinite(found[:2]).all()
    assert again.shape == (1,)
    told = [
        by_masked_crops(clip, tokenizer, photo, masks, name, templates=("a {}", "{}"))
        for name in ("circle", "square")
    ]
    both = by_masked_crops(
        clip, tokenizer, photo, masks, "circle", templates=("a {}", "{}"), others="square"
    )
    np.testing.assert_allclose(both[:2], (told[0] - told[1])[:2], atol=1e-6)


def test_templates_are_fourteen():
    assert len(set(VILD_TEMPLATES)) == 14
    assert all("{}" in template for template in VILD_TEMPLATES)


# Choices -----------------------------------------------------------------------------------------


def test_the_most_similar_is_chosen_where_it_fits():
    scores = np.array([0.1, 0.3, -np.inf])
    assert choose(scores, 0.2).entities == (1,)
    assert choose(scores, 0.5) == ((), scores, False)
    assert choose(scores, 0.5, anyway=True).entities == (1,)
    assert choose(np.array([-np.inf]), 0.0, anyway=True).entities == ()
    assert choose(np.zeros(0), 0.0, anyway=True).entities == ()


def line(words, scores, sizes=(9, 9, 9), **options):
    made = choose_in_line(words, [np.array(s) for s in scores], np.array(sizes), 0.5, **options)
    return [choice.entities for choice in made]


@pytest.mark.parametrize(
    ("words", "scores", "chosen"),
    [
        # The first whatever its score, the others from the threshold on.
        (["dog"], [[0.1, 0.2, 0.3]], [(2,)]),
        (["dog"], [[0.6, 0.2, 0.9]], [(2, 0)]),
        # The same word again leaves the second one to its turn.
        (["dog", "dog"], [[0.6, 0.2, 0.9]] * 2, [(2,), (0,)]),
        # What another word took needs a score no lower.
        (["dog", "cat"], [[0.1, 0.2, 0.9], [0.1, 0.2, 0.3]], [(2,), (1,)]),
        (["dog", "cat"], [[0.1, 0.2, 0.3], [0.1, 0.2, 0.9]], [(2,), (2,)]),
    ],
)
def test_the_published_rule_of_a_line(words, scores, chosen):
    assert line(words, scores) == chosen


def test_small_entities_are_passed_over_and_the_first_may_need_to_fit():
    assert line(["dog"], [[0.1, 0.2, 0.3]], sizes=(9, 9, 3)) == [(1,)]
    assert line(["dog"], [[0.1, 0.2, 0.3]], anyway=False) == [()]
    assert line(["dog"], [[0.1, 0.6, 0.3]], anyway=False) == [(1,)]

"""SeMani-Trans's Transformer against a PyTorch transcription of the published network's facts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vljax import pretrained
from vljax.models.completion import complete, complete_in_parallel
from vljax.models.decoding import greedy, sample
from vljax.models.parameters import named_parameters
from vljax.models.token_transformer import TokenTransformer

pytestmark = pytest.mark.usefixtures("quick_to_compile")

SMALL = {
    "features": 16,
    "layers": 2,
    "heads": 2,
    "head_channels": 8,
    "num_codes": 12,
    "grid": 4,
    "vocabulary_size": 20,
    "text_length": 5,
}
CODES, ROWS = 16, 3


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def transcription(torch, features, layers, heads, head_channels, num_codes, grid, **sizes):
    """The published network by its names."""
    nn, f = torch.nn, torch.nn.functional
    words, length = sizes["vocabulary_size"], sizes["text_length"]

    class Norm(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x / (x.abs().max().detach() / 8))

    class Scaled(nn.Module):
        def __init__(self, function, depth):
            super().__init__()
            start = 0.1 if depth <= 18 else 1e-5
            self.scale = nn.Parameter(torch.full((1, 1, features), start))
            self.fn = nn.Module()
            self.fn.pre_norm, self.fn.post_norm = Norm(features), Norm(features)
            self.fn.fn = function

        def forward(self, x, *more):
            changed = self.fn.fn(self.fn.pre_norm(x), *more)
            return x + self.scale * self.fn.post_norm(changed)

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            inner = heads * head_channels
            self.to_qkv = nn.Linear(features, 3 * inner, bias=False)
            self.to_out = nn.Sequential(nn.Linear(inner, features), nn.Dropout(0.1))

        def forward(self, x, mask):
            b, n, _ = x.shape
            q, k, v = (
                part.reshape(b, n, heads, -1).transpose(1, 2)
                for part in self.to_qkv(x).chunk(3, dim=-1)
            )
            scores = q @ k.transpose(-1, -2) * head_channels**-0.5
            weights = scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
            return self.to_out((weights @ v).transpose(1, 2).reshape(b, n, -1))

    class Gated(nn.Module):
        def forward(self, x):
            value, gate = x.chunk(2, dim=-1)
            return value * f.gelu(gate)

    class FeedForward(nn.Module):
        def __init__(self):
            super().__init__()
            inner = 4 * features
            self.net = nn.Sequential(
                nn.Linear(features, 2 * inner), Gated(), nn.Dropout(0.1), nn.Linear(inner, features)
            )

        def forward(self, x):
            return self.net(x)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.text_emb = nn.Embedding(words + length, features)
            self.image_emb = nn.Embedding(num_codes, features)
            self.text_pos_emb = nn.Embedding(length + 1, features)
            self.image_pos_emb = nn.Module()
            for axis, shape in enumerate(((1, grid, 1, features), (1, 1, grid, features))):
                weights = nn.Parameter(torch.randn(shape))
                setattr(self.image_pos_emb, f"weights_{axis}", weights)
            self.bov_emb = nn.Parameter(torch.randn(1, 1, features))
            self.bov_pos_emb = nn.Parameter(torch.randn(1, 1, features))
            blocks = [
                nn.ModuleList([Scaled(Attention(), i + 1), Scaled(FeedForward(), i + 1)])
                for i in range(layers)
            ]
            self.transformer = nn.Module()
            self.transformer.layers = nn.Module()
            self.transformer.layers.layers = nn.ModuleList(blocks)
            self.to_im_logits = self.head(num_codes)
            self.to_text_logits = self.head(words + length)

        def head(self, count):
            return nn.Sequential(nn.LayerNorm(features), nn.Linear(features, count))

        def places(self):
            axes = self.image_pos_emb
            return (axes.weights_0 + axes.weights_1).reshape(1, grid * grid, features)

        def forward(self, text, codes, gray=None, used=None):
            text = torch.where(text == 0, words + torch.arange(length), text)
            begun = f.pad(text, (1, 0))
            parts = [self.text_emb(begun) + self.text_pos_emb.weight]
            before = 0
            if gray is not None:
                before = 1 + grid * grid
                bov = (self.bov_emb + self.bov_pos_emb).expand(len(text), -1, -1)
                parts = [bov, self.image_emb(gray) + self.places(), *parts]
            x = torch.cat([*parts, self.image_emb(codes) + self.places()], dim=1)[:, :-1]
            n = x.shape[1]
            mask = torch.ones(len(text), n, n).tril().bool()
            mask[:, before : before + length, :before] = False
            if used is not None:
                mask[~used, before + length :, :before] = False
            for pair in self.transformer.layers.layers:
                x = pair[1](pair[0](x, mask))
            return (
                self.to_text_logits(x[:, before : before + length]),
                self.to_im_logits(x[:, before + length :]),
                self.to_im_logits(x[:, : grid * grid]),
            )

    return Network()


@pytest.fixture(scope="module")
def both(torch, tmp_path_factory):
    """The transcription with random weights, and ours that read its checkpoint."""
    torch.manual_seed(0)
    peer = transcription(torch, **SMALL).eval()
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if name.endswith("scale"):
                parameter.uniform_(0.3, 1.0)
            elif parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    file = tmp_path_factory.mktemp("trans") / "checkpoint.pt"
    torch.save({"state_dict": peer.state_dict(), "epoch": 3, "vae_params": None}, file)
    skeleton = jax.eval_shape(lambda: TokenTransformer(**SMALL, rngs=nnx.Rngs(0)))
    return peer, pretrained.load(skeleton, file)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    text = rng.integers(0, 20, (ROWS, 5)).astype(np.int32)
    text[0, 3:] = 0
    codes, gray = rng.integers(0, 12, (2, ROWS, CODES)).astype(np.int32)
    return text, codes, gray, np.array([True, False, True])


def test_it_equals_the_transcription(torch, both, inputs):
    peer, model = both
    text, codes, gray, used = inputs
    as_torch = [torch.from_numpy(x.astype(np.int64)) for x in (text, codes, gray)]
    with torch.no_grad():
        plain = peer(*as_torch[:2])
        seeing = peer(*as_torch, torch.from_numpy(used))
    call = jax.jit(TokenTransformer.__call__)
    for ours, theirs in (
        (call(model, text, codes), plain[:2]),
        (call(model, text, codes, gray, used), seeing),
    ):
        for mine, other in zip(ours, theirs, strict=False):
            assert np.abs(mine - other.numpy()).max() <= 1e-4 * np.abs(other.numpy()).max()
    assert call(model, text, codes).gray is None


def test_gradients_equal_the_transcription(torch, both, inputs):
    peer, model = both
    text, codes, gray, used = inputs

    def loss(model):
        logits = model(text, codes, gray, used)
        return sum(jnp.square(one).sum() for one in logits)

    ours = named_parameters(jax.jit(jax.grad(loss))(model))
    as_torch = [torch.from_numpy(x.astype(np.int64)) for x in (text, codes, gray)]
    total = sum((one**2).sum() for one in peer(*as_torch, torch.from_numpy(used)))
    total.backward()
    for name, value in peer.named_parameters():
        mine, theirs = np.asarray(ours[name]), value.grad.numpy()
        mine = mine.T if mine.ndim == 2 and "emb" not in name else mine
        assert np.abs(mine.reshape(-1) - theirs.reshape(-1)).max() <= 1e-3 * np.abs(theirs).max()
    peer.zero_grad()


def test_the_published_size():
    sizes = {}
    for vision in (False, True):
        model = jax.eval_shape(
            lambda vision=vision: TokenTransformer(vision=vision, rngs=nnx.Rngs(0))
        )
        parameters = named_parameters(model)
        sizes[vision] = sum(value.size for value in parameters.values())
    assert sizes == {False: 152_817_536, True: 152_818_560}
    assert parameters["text_emb.weight"].shape == (49_408 + 128, 512)
    names = set(parameters)
    assert {
        "image_pos_emb.weights_0",
        "transformer.layers.layers.23.1.scale",
        "transformer.layers.layers.0.0.fn.pre_norm.weight",
        "transformer.layers.layers.0.0.fn.fn.to_out.0.bias",
        "transformer.layers.layers.0.1.fn.fn.net.3.weight",
        "to_text_logits.1.bias",
    } <= names


def test_it_is_written_in_the_published_layout(torch, both, tmp_path):
    """And today's names of the axial positions are read."""
    peer, model = both
    pretrained.save(model, tmp_path / "model.safetensors")
    written = pretrained.read_tensors(tmp_path / "model.safetensors")
    for name, tensor in peer.state_dict().items():
        np.testing.assert_array_equal(written[name], tensor.numpy())
    today = {name.replace("emb.weights_", "emb.weights."): t for name, t in written.items()}
    assert today.keys() != written.keys()
    assert TokenTransformer.published_names(today).keys() == written.keys()


@pytest.mark.parametrize("seeing", [False, True])
def test_steps_equal_the_whole_pass(both, inputs, seeing):
    """Cached decoding gives what one pass over the sequence gives, to 1e-5."""
    _, model = both
    text, codes, gray, used = inputs
    more = (gray, used) if seeing else ()
    whole = jax.nn.log_softmax(jax.jit(TokenTransformer.__call__)(model, text, codes, *more).image)
    cache = jax.jit(TokenTransformer.start)(model, text, *more)
    token, step = model.first(text), jax.jit(TokenTransformer.step)
    for place in range(CODES):
        log_p, cache = step(model, cache, token)
        np.testing.assert_allclose(log_p, whole[:, place], atol=1e-5)
        token = codes[:, place]


def test_what_is_seen(both, inputs):
    """Rows that do not use the gray picture do not depend on it, nor do the words of those that do.

    And no code depends on a later one.
    """
    _, model = both
    text, codes, gray, used = inputs
    call = jax.jit(TokenTransformer.__call__)
    one = call(model, text, codes, gray, used)
    other = call(model, text, codes, (gray + 1) % 12, used)
    np.testing.assert_array_equal(one.text, other.text)
    changed = np.abs(one.image - other.image).max((1, 2)) > 1e-3
    np.testing.assert_array_equal(changed, used)
    later = codes.copy()
    later[:, 9:] = 0
    np.testing.assert_array_equal(
        call(model, text, later).image[:, :10], call(model, text, codes).image[:, :10]
    )


@jax.jit
def published_loop(model, text, codes, edited, keys, gray, used):
    """All positions in raster order, a full pass each; kept codes are written over."""

    def body(place, now):
        log_p = jax.nn.log_softmax(model(text, now, gray, used).image[:, place])
        noise = jax.vmap(lambda k: jax.random.gumbel(jax.random.fold_in(k, place), (12,)))(keys)
        drawn = jnp.argmax(log_p + noise, axis=-1)
        return now.at[:, place].set(jnp.where(edited[:, place], drawn, codes[:, place]))

    return jax.lax.fori_loop(0, CODES, body, jnp.zeros_like(codes))


MASKS = {
    "all": np.ones((4, 4), bool),
    "rows apart": np.array([[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]], bool),
    "the last": np.arange(16).reshape(4, 4) == 15,
    "none": np.zeros((4, 4), bool),
}


def test_completion_equals_the_published_loop(both, inputs, compilations):
    """Whatever the mask, in as many passes as codes are drawn; another mask compiles nothing."""
    _, model = both
    text, codes, gray, used = inputs
    keys = jax.random.split(jax.random.key(1), ROWS)
    run = jax.jit(complete)
    passes = {}
    for number, (name, mask) in enumerate(MASKS.items()):
        edited = np.broadcast_to(mask.reshape(-1), codes.shape)
        kwargs = {"gray": gray, "uses_gray": used, "temperature": np.float32(1.0)}
        compilations()
        found = run(model, text, codes, edited, keys, **kwargs)
        assert (compilations() > 0) == (number == 0)
        expected = published_loop(model, text, codes, edited, keys, gray, used)
        np.testing.assert_array_equal(found.codes, expected)
        passes[name] = int(found.passes)
    # "rows apart": five kept codes lie between the second and the third that are drawn.
    assert passes == {"all": 16, "rows apart": 4, "the last": 1, "none": 1}


def test_rows_with_masks_of_their_own(both, inputs):
    """Each comes out as it does alone."""
    _, model = both
    text, codes, _, _ = inputs
    keys = jax.random.split(jax.random.key(2), ROWS)
    masks = [MASKS[name].reshape(-1) for name in ("all", "rows apart", "the last")]
    run = jax.jit(complete)
    together = run(model, text, codes, np.stack(masks), keys).codes
    for row, mask in enumerate(masks):
        edited = np.broadcast_to(mask, codes.shape)
        np.testing.assert_array_equal(
            run(model, text, codes, edited, keys).codes[row], together[row]
        )
        np.testing.assert_array_equal(together[row][~mask], codes[row][~mask])


def test_it_follows_the_decoder_protocol(both, inputs):
    _, model = both
    text, codes, _, _ = inputs
    edited = np.ones_like(codes, bool)
    keys = jax.random.split(jax.random.key(3), ROWS)

    @jax.jit
    def by_protocol(model):
        cache, first = model.start(text), model.first(text)
        surest = greedy(model.step, cache, first, CODES, end=-1)
        return surest, sample(model.step, cache, first, CODES, keys, end=-1, top_k=4)

    surest, drawn = by_protocol(model)
    run = jax.jit(complete)
    zero = run(model, text, codes, edited, keys, temperature=np.float32(0))
    np.testing.assert_array_equal(surest.tokens, zero.codes)
    few = run(model, text, codes, edited, keys, top_k=np.int32(4))
    np.testing.assert_array_equal(drawn.tokens, few.codes)


@pytest.fixture(scope="module")
def masked():
    model = TokenTransformer(**SMALL, masked=True, rngs=nnx.Rngs(1))
    for pair in model.transformer.layers.layers:
        for part in pair:
            part.scale[...] = jnp.full(16, 0.7)
    return model


def test_a_masked_network_sees_all_codes_but_masked_ones(masked, inputs):
    text, codes, gray, used = inputs
    unknown = np.zeros_like(codes, bool)
    unknown[:, 3:6] = True
    fill = jax.jit(TokenTransformer.fill)
    one = fill(masked, text, codes, unknown, gray, used)
    hidden, last = codes.copy(), codes.copy()
    hidden[:, 4] = (codes[:, 4] + 1) % 12
    last[:, 15] = (codes[:, 15] + 1) % 12
    np.testing.assert_array_equal(one, fill(masked, text, hidden, unknown, gray, used))
    other = fill(masked, text, last, unknown, gray, used)
    assert (np.abs(one - other)[:, 0].max(-1) > 1e-4).all()  # the first sees the last


def test_parallel_completion(masked, inputs, compilations):
    """Kept codes stay; one pass at temperature 0 is the argmax of a whole pass."""
    text, codes, gray, used = inputs
    keys = jax.random.split(jax.random.key(4), ROWS)
    run = jax.jit(complete_in_parallel, static_argnums=5)
    kwargs = {"gray": gray, "uses_gray": used, "temperature": np.float32(0)}
    expected = {}
    for number, name in enumerate(("rows apart", "all")):
        edited = np.broadcast_to(MASKS[name].reshape(-1), codes.shape)
        compilations()
        once = run(masked, text, codes, edited, keys, 1, **kwargs).codes
        assert (compilations() > 0) == (number == 0)
        logits = jax.jit(TokenTransformer.fill)(masked, text, codes, edited, gray, used)
        expected = np.where(edited, logits.argmax(-1), codes)
        np.testing.assert_array_equal(once, expected)
        garbage = np.where(edited, 0, codes)
        few = run(masked, text, codes, edited, keys, 4, **kwargs).codes
        again = run(masked, text, garbage, edited, keys, 4, **kwargs).codes
        np.testing.assert_array_equal(few, again)
        np.testing.assert_array_equal(np.asarray(few)[~edited], codes[~edited])


def test_passes_settle_the_surest_first(masked, inputs):
    """Two passes: those settled in the first are the surest, the others are drawn given them."""
    text, codes, _, _ = inputs
    edited = np.ones_like(codes, bool)
    keys = jax.random.split(jax.random.key(5), ROWS)
    kwargs = {"temperature": np.float32(0), "choice": np.float32(0)}
    run = jax.jit(complete_in_parallel, static_argnums=5)
    found = run(masked, text, codes, edited, keys, 2, **kwargs).codes
    fill = jax.jit(TokenTransformer.fill)
    first = np.asarray(fill(masked, text, codes, edited))
    log_p = np.asarray(jax.nn.log_softmax(first))
    left = int(16 * np.cos(np.pi / 4))
    for row in range(ROWS):
        order = np.argsort(log_p[row].max(-1))
        still = np.zeros(16, bool)
        still[order[:left]] = True
        begun = first[row].argmax(-1)
        again = [np.broadcast_to(one, codes.shape) for one in (begun, still)]
        second = np.asarray(fill(masked, text, *again))[row]
        np.testing.assert_array_equal(found[row], np.where(still, second.argmax(-1), begun))


def test_dropout_needs_a_key(inputs):
    text, codes, _, _ = inputs
    model = TokenTransformer(**SMALL, dropout_rate=0.5, rngs=nnx.Rngs(0))
    call = jax.jit(TokenTransformer.__call__)
    plain, again = call(model, text, codes).image, call(model, text, codes).image
    np.testing.assert_array_equal(plain, again)
    dropped = call(model, text, codes, key=jax.random.key(0)).image
    assert np.abs(plain - dropped).max() > 1e-3


def test_a_gray_picture_needs_vision(inputs):
    text, codes, gray, _ = inputs
    model = TokenTransformer(**SMALL, vision=False, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="without vision"):
        model(text, codes, gray)

"""Published checkpoints: every form is read, every mistake is listed."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from vljax import pretrained
from vljax.errors import RunError, UserError
from vljax.models.layers import Conv, Embedding, Linear
from vljax.models.parameters import named_parameters, variables, with_parameters


class Model(nnx.Module):
    """One layer of each layout."""

    def __init__(self, rngs):
        self.conv = Conv(3, 4, 3, rngs=rngs)
        self.heads = nnx.List([Linear(4, 6, rngs=rngs), Linear(6, 2, bias=False, rngs=rngs)])
        self.pointwise = Linear(4, 5, published="o i 1 -> i o", rngs=rngs)
        self.words = Embedding(7, 2, rngs=rngs)
        self.scale = nnx.Param(jax.numpy.float32(2))  # of no axes, as CLIP's logit_scale


@pytest.fixture
def model():
    return Model(nnx.Rngs(0))


@pytest.fixture
def tensors(model):
    layouts = variables(model)
    return {
        name: pretrained.to_published(np.asarray(value), layouts[name])
        for name, value in named_parameters(model).items()
    }


def assert_same(model, other):
    for name, value in named_parameters(model).items():
        np.testing.assert_array_equal(value, named_parameters(other)[name])


def test_published_shapes_are_pytorchs(tensors):
    torch = pytest.importorskip("torch")
    assert tensors["conv.weight"].shape == tuple(torch.nn.Conv2d(3, 4, 3).weight.shape)
    assert tensors["heads.0.weight"].shape == tuple(torch.nn.Linear(4, 6).weight.shape)
    assert tensors["pointwise.weight"].shape == tuple(torch.nn.Conv1d(4, 5, 1).weight.shape)
    assert tensors["words.weight"].shape == (7, 2)
    assert "heads.1.bias" not in tensors


def test_layers_compute_what_pytorchs_do(model, tensors):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((2, 5, 6, 3)).astype(np.float32)
    theirs = torch.nn.functional.conv2d(
        torch.from_numpy(x.transpose(0, 3, 1, 2).copy()),
        torch.from_numpy(tensors["conv.weight"]),
        torch.from_numpy(tensors["conv.bias"]),
        padding=1,
    )
    np.testing.assert_allclose(model.conv(x), theirs.permute(0, 2, 3, 1), atol=1e-5)


@pytest.mark.parametrize("form", ["file", "folder", "shards", "fp16", "bf16 pt", "state_dict pt"])
def test_every_form_is_read(model, tensors, form, tmp_path):
    skeleton = jax.eval_shape(lambda: Model(nnx.Rngs(1)))
    exact = True
    path = tmp_path
    if form == "file":
        save_file(tensors, path := tmp_path / "m.safetensors")
    elif form == "folder":
        save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    elif form == "shards":
        names = sorted(tensors)
        files = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
        for file, part in files.items():
            save_file({name: tensors[name] for name in part}, tmp_path / file)
        index = {"weight_map": {name: file for file, part in files.items() for name in part}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    elif form == "fp16":
        half = {name: t.astype(np.float16) for name, t in tensors.items()}
        save_file(half, path := tmp_path / "m.safetensors")
        exact = False
    else:
        torch = pytest.importorskip("torch")
        values = {name: torch.from_numpy(t) for name, t in tensors.items()}
        if form == "bf16 pt":
            values = {name: t.bfloat16() for name, t in values.items()}
            exact = False
        else:
            # Whole parameters, as some trainers save them.
            held = {name: torch.nn.Parameter(value) for name, value in values.items()}
            values = {"state_dict": held, "epoch": 3}
        torch.save(values, path := tmp_path / "m.pt")
    loaded = pretrained.load(skeleton, path)
    if exact:
        assert_same(loaded, model)
    for name, value in named_parameters(loaded).items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, named_parameters(model)[name], atol=2e-2)


def test_what_is_saved_is_loaded(model, tensors, tmp_path, monkeypatch):
    pretrained.save(model, path := tmp_path / "new" / "m.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    saved = pretrained.read_tensors("~/new/m.safetensors")
    assert saved.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(saved[name], tensor)
    skeleton = jax.eval_shape(lambda: Model(nnx.Rngs(1)))
    assert_same(model, pretrained.load(skeleton, path))


def test_what_was_learnt_of_one_thing_is_read_from_its_folder(tmp_path):
    """A U-Net, a word, or both; beside a whole pipeline's networks the word is none of theirs."""
    tensor = np.ones(2, np.float32)

    def held(*files):
        for file in files:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            save_file({file[0]: tensor}, tmp_path / file)
        return set(pretrained.read_tensors(tmp_path))

    assert held("learned_embeds.safetensors") == {"l"}
    assert held("unet/diffusion_pytorch_model.safetensors") == {"l", "unet.u"}
    whole = held("vae/model.safetensors", "text_encoder/model.safetensors")
    assert whole == {"vae.v", "unet.u", "text_encoder.t"}


def test_all_differences_come_in_one_error(model, tensors, tmp_path):
    del tensors["conv.bias"], tensors["words.weight"]
    tensors["heads.0.weight"] = np.zeros((6, 5), np.float32)
    tensors["pointwise.weight"] = np.zeros((5, 4), np.float32)
    tensors["extra.one"] = tensors["ema.two"] = np.zeros(1, np.float32)
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(UserError) as caught:
        pretrained.load(model, tmp_path / "m.safetensors", ignore=("ema.",))
    message = str(caught.value)
    assert "2 missing: conv.bias, words.weight" in message
    assert "1 surplus: extra.one" in message
    assert "2 misshapen: heads.0.weight (file: 6 5" in message
    assert "pointwise.weight" in message
    assert "ema.two" not in message


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".safetensors.index.json"])
def test_damage_is_named(model, tensors, tmp_path, suffix):
    if suffix == ".pt":
        pytest.importorskip("torch")
    file = tmp_path / f"m{suffix}"
    file.write_bytes(b"\x80 not a checkpoint")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        pretrained.load(model, file)
    with pytest.raises(UserError, match="no checkpoint at"):
        pretrained.load(model, tmp_path / "absent.pt")
    with pytest.raises(UserError, match="holds no checkpoint"):
        pretrained.load(model, tmp_path)


def test_pickled_code_is_refused(model, tmp_path):
    torch = pytest.importorskip("torch")

    class Surprise:
        def __reduce__(self):
            return print, ("executed",)

    torch.save({"w": Surprise()}, tmp_path / "m.pt")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        pretrained.load(model, tmp_path / "m.pt")


def test_writing_is_atomic(tensors, tmp_path, monkeypatch):
    file = tmp_path / "deep" / "m.safetensors"
    pretrained.write_tensors(tensors, file)
    before = file.read_bytes()

    def no_room(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vljax.pretrained.checkpoint.os.fsync", no_room)
    with pytest.raises(RunError, match=r"No space left.*: make room and try again"):
        pretrained.write_tensors({"other": np.zeros(3, np.float32)}, file)
    with pytest.raises(RunError, match=r"File exists.*: see that it can be written there"):
        pretrained.write_tensors(tensors, file / "m.safetensors")
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_unknown_parameters_are_refused(model):
    with pytest.raises(KeyError, match="nothing"):
        with_parameters(model, {"nothing": np.zeros(1)})


def test_code_beside_weights_is_not_loaded(tmp_path):
    """OpenAI publishes its CLIP as TorchScript archives."""
    torch = pytest.importorskip("torch")
    torch.jit.trace(torch.nn.Linear(2, 3), torch.zeros(1, 2)).save(tmp_path / "clip.pt")
    with pytest.raises(UserError, match=r"clip.pt is a TorchScript archive.*state_dict\(\)"):
        pretrained.read_tensors(tmp_path / "clip.pt")

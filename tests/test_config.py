"""Configs of earlier runs."""

import json

import pytest

from vljax.config import from_workdir, get_base_config
from vljax.doors import read_workdir
from vljax.errors import UserError
from vljax.systems import load_system
from vljax.training.workdir import Workdir


def test_fields_that_are_gone_are_read_while_they_say_nothing_new(tmp_path):
    def read(**diffusion):
        config = {"system": "sdg", "model": {"diffusion": {"num_heads": 1, **diffusion}}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return from_workdir(tmp_path).model.diffusion.to_dict()

    assert read(head_order="heads_first", resblock_updown=True) == read() == {"num_heads": 1}
    with pytest.raises(UserError, match="head_order='qkv_first' is no longer built"):
        read(head_order="qkv_first")


@pytest.mark.parametrize("content", ['{"system": "sd', "{}", "[1]", '{"system": 3}', b"\xff"])
def test_a_damaged_config_is_told_to_those_who_use_a_run_and_who_resume_it(content, tmp_path):
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "config.json").write_bytes(content)
    config = get_base_config("sdg")
    for read in (from_workdir, lambda path: Workdir(path, config, config)):
        with pytest.raises(UserError, match=r"config\.json is damaged \(.*remove the file"):
            read(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == content


def test_fields_that_an_older_version_had_not_are_todays(tmp_path, capsys):
    """All but what a recipe chooses whole: networks, stages, weights, data."""
    usual = load_system("text2image").get_config("tokens")
    old = usual.to_dict()
    del old["samples"]["top_k"], old["autoencoder"], old["model"]["clip"]["embed_dim"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    found = read_workdir(tmp_path)
    assert found.samples.top_k == usual.samples.top_k
    assert found.autoencoder == usual.autoencoder
    assert "embed_dim" not in found.model.clip
    told = capsys.readouterr().err
    assert "older version: autoencoder.kl_weight=0.0003, samples.top_k=0 taken as usual" in told
    (tmp_path / "config.json").write_text(json.dumps(usual.to_dict()))
    read_workdir(tmp_path)
    assert not capsys.readouterr().err

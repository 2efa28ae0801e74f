"""Configs of earlier runs."""

import json

import pytest

from vljax.config import from_workdir
from vljax.errors import UserError


def test_fields_that_are_gone_are_read_while_they_say_nothing_new(tmp_path):
    def read(**diffusion):
        config = {"system": "sdg", "model": {"diffusion": {"num_heads": 1, **diffusion}}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return from_workdir(tmp_path).model.diffusion.to_dict()

    assert read(head_order="heads_first", resblock_updown=True) == read() == {"num_heads": 1}
    with pytest.raises(UserError, match="head_order='qkv_first' is no longer built"):
        read(head_order="qkv_first")


def test_a_damaged_config_is_told(tmp_path):
    (tmp_path / "config.json").write_text('{"system": "sd')
    with pytest.raises(UserError, match=r"config\.json is damaged \(.*give another run's workdir"):
        from_workdir(tmp_path)

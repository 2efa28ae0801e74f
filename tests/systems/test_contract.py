"""What every system keeps to, so that doors, page and training need not know it.

Each recipe in `configs/` is built as it runs alone, on scenes; recipes that are the same run count
once.
"""

import argparse
import importlib.util
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from vljax import config as configs
from vljax.errors import UserError
from vljax.models.parameters import named_parameters
from vljax.request import add_flags, changed, check, from_flags, options
from vljax.systems import load_system, names

ROOT = Path(__file__).parents[2]
# Stages that no recipe trains unless asked.
IF_ASKED = {"localizer"}


def recipes():
    """The small recipes by file name, each run once."""
    found = {}
    for file in sorted((ROOT / "configs").glob("*.py")):
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config()
        found.setdefault(configs.to_json(config), (file.stem, config))
    return dict(found.values())


RECIPES = recipes()


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request):
    """A recipe: its config, system, model (shapes only) and stages."""
    config = RECIPES[request.param]
    system = load_system(config.system)
    model = jax.eval_shape(lambda: system.make_model(config))
    return config, system, model, system.stages(config)


def test_every_system_has_a_recipe_and_a_name():
    assert {config.system for config in RECIPES.values()} == set(names())
    for name in names():
        assert load_system(name).name == name


def test_a_recipe_has_the_fields_of_its_system(recipe):
    config, system, _, stages = recipe
    assert config.about
    ours, own = config.to_dict(), system.get_config().to_dict()
    assert ours.keys() == own.keys()
    assert ours["model"].keys() == own["model"].keys()
    assert sorted(stage.name for stage in stages) == sorted({*config.stages} - IF_ASKED)


def test_every_parameter_is_trained_or_published(recipe):
    config, _, model, stages = recipe
    patterns = [pattern for stage in stages for pattern, _ in stage.train]
    trained = [n for n in named_parameters(model) if any(re.match(p, n) for p in patterns)]
    parts = {name.partition(".")[0] for name in trained} | set(config.pretrained)
    left = [
        name
        for name in named_parameters(model)
        # What a trained part does not train, such as a norm's statistics, is its own to know.
        if name.partition(".")[0] not in parts
    ]
    assert not left


def test_every_pretrained_key_is_a_part(recipe):
    config, _, model, _ = recipe
    for part in config.pretrained:
        assert hasattr(model, part), f"pretrained.{part} names no part"


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("asks", ["request", "judging"])
def test_flags_are_made_from_the_dataclass(name, asks):
    wanted = getattr(load_system(name), asks)
    parser = argparse.ArgumentParser()
    add_flags(parser, wanted)
    made = from_flags(wanted, parser.parse_args([]))
    assert made == wanted()
    assert not changed(made)
    check(made)
    for one in options(wanted):
        assert one.help, one.name
        if one.name == "seed":
            assert changed(wanted(seed=7)) == {"seed": 7}
            for none in (-1, 2**31, 10**400):
                with pytest.raises(UserError, match=f"--seed={none}: give a number from 0 to 2147"):
                    check(wanted(seed=none))
        assert one.default is None or one.many or isinstance(one.default, one.type), one.name
        assert not one.choices or one.default in (None, (), *one.choices), one.name
    with pytest.raises(AttributeError):  # frozen
        setattr(made, options(wanted)[0].name, None)


def test_a_stage_reads_what_its_source_gives(recipe):
    config, _, _, stages = recipe
    for stage in stages:
        example = stage.transform(stage.source[0], np.random.default_rng(config.seed))
        assert example
        assert all(isinstance(value, np.ndarray | np.generic) for value in example.values())
        # Names that batching takes for itself.
        assert not example.keys() & {"index", "substituted"}, stage.name

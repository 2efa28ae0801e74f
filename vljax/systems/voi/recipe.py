"""The recipes of VOI: its fields, the small one on scenes, and what the published ones share.

```
config.order             'voi', a fixed order ('l2r', 'r2l', 'random', 'common', 'rare'), or 'sao'
config.num_orders        K, the orders drawn for a target
config.label_smoothing   share of all words in θ's labels
config.search_beams      'sao': width of the search for the order

stages.NAME.order        as config.order, which it follows unless set
stages.NAME.trains       'both', 'permutation' or 'decoder' ('voi'; otherwise it is the decoder)
stages.NAME.shared       whether both networks have one table of words and one source encoder
stages.NAME.estimator    'reinforce' or 'ppo'
stages.NAME.entropy      β at the start and at the end of the stage, log-linear between
stages.NAME.alignment    coefficient of the cosine distance between both networks' words
stages.NAME.alternate    (a, b): a steps of θ, then b steps of φ; (0, 0) for both in every step
stages.NAME.permutation_rate  learning rate of φ over that of θ
```

A recipe's stages run in the order of `STAGES`, after them those it does not know, by name.
"""

import math
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vljax.config import get_base_config
from vljax.errors import UserError
from vljax.training.optimizer import get_optimizer_config

FIXED_ORDERS = ("l2r", "r2l", "random", "common", "rare")
ORDERS = (*FIXED_ORDERS, "sao", "voi")
STAGES = ("decoder", "joint", "permutation", "separate", "tune")


def get_stage_config(config: ConfigDict, **fields: Any) -> ConfigDict:
    """The fields of a stage, with their defaults."""
    stage = ConfigDict(
        {
            # A value given for one stage must not change the others, as a reference's would.
            "order": fields.pop("order", config.get_ref("order")),
            "trains": "both",
            "shared": False,
            "estimator": "reinforce",
            "entropy": (0.5, 0.5),
            "alignment": 0.0,
            "alternate": (0, 0),
            "permutation_rate": 0.1,
            "batch_size": 32,
            "num_steps": 1000,
            "accumulate": 1,
            "ema_decay": 0.0,
            "optimizer": get_optimizer_config(name="adam", b2=0.98, learning_rate=1e-4),
        }
    )
    optimizer = fields.pop("optimizer", {})
    stage.update(fields)
    stage.optimizer.update(optimizer)
    return stage


def get_config() -> ConfigDict:
    """The fields of a VOI run, with a recipe that two CPU cores finish on scenes in minutes."""
    config = get_base_config("voi")
    config.about = "VOI on the embedded scenes: a small recipe for two CPU cores, not the paper's."
    config.data.update(
        {
            "name": "scenes",
            "path": "",
            "split": "train",
            "eval_split": "",
            "held_out": 0,
            "max_source": 3,
            "max_target": 20,
            "vocabulary_size": 0,
            "vocabulary": "",
            "min_count": 1,
            "features": "regions",
            "scenes": {"size": 10_000, "max_objects": 2},
        }
    )
    config.order = "voi"
    config.num_orders = 4
    config.label_smoothing = 0.1
    config.search_beams = 8
    config.model = {
        "layers": 2,
        "features": 128,
        "hidden": 256,
        "heads": 4,
        "norm": "pre",
        "source_scheme": "relative",
        "dropout_rate": 0.0,
        "remat": "off",
        "dtype": "float32",
        "permutation": {
            "scheme": "xl",
            "max_distance": 16,
            "distribution": "gumbel_matching",
        },
    }
    adam = {"learning_rate": 1e-3, "clip_norm": 1.0}
    config.stages = {
        "joint": get_stage_config(
            config,
            shared=True,
            num_steps=600,
            optimizer={**adam, "warmup_steps": 100},
        ),
        "separate": get_stage_config(
            config, entropy=(0.5, 0.02), alignment=1.0, num_steps=1200, optimizer=adam
        ),
        "tune": get_stage_config(
            config, trains="decoder", num_steps=400, optimizer={**adam, "schedule": "linear"}
        ),
    }
    config.pretrained = {"decoder": "", "permutation": ""}
    # Split over `tensor`: what enters attention and the feed-forward block by column, what leaves
    # them by row; everything else as `fsdp`.
    config.sharding = (
        (r".*(query|key|value|inner)\.weight", "column"),
        (r".*(out|outer)\.weight", "row"),
        (".*", "fsdp"),
    )
    config.samples = {"count": 8, "beams": 4}
    config.log.pictures_every = 500
    config.checkpoint.every = 500
    return config


def get_published_config(data_name: str, data_dir: str) -> ConfigDict:
    """What the published recipes share: Transformer-Base, K = 4 (thesis, section 3.5)."""
    config = get_config()
    config.data.update({"name": data_name, "path": data_dir, "workers": 4})
    config.model.update(
        {"layers": 6, "features": 512, "hidden": 2048, "heads": 8, "dtype": "bfloat16"}
    )
    adam = {"clip_norm": 0.0, "warmup_steps": 0, "schedule": "constant", "learning_rate": 1e-4}
    for stage in config.stages.values():
        stage.optimizer.update(adam)
    config.stages.separate.alignment = 100.0
    config.stages.tune.batch_size = 64
    config.stages.tune.optimizer.schedule = "linear"
    config.log.pictures_every = 5000
    config.checkpoint.every = 5000
    return config


def use_distilled(config: ConfigDict, folder: Path) -> None:
    """Read the pairs that `generate --distill` left in a folder, where it holds them."""
    if (folder / "src_raw_train.txt").is_file():
        vocabulary = str(folder / "vocabulary.json")
        config.data.update({"name": "django", "path": str(folder), "vocabulary": vocabulary})


def stage_names(config: ConfigDict) -> list[str]:
    """Names of the stages in the order in which they train; a config's fields have none."""
    known = [name for name in STAGES if name in config.stages]
    return known + sorted(set(config.stages) - set(known))


def order_of(stage: ConfigDict) -> str:
    """The order that a stage trains.

    Raises:
        UserError: there is no such order.
    """
    if stage.order not in ORDERS:
        raise UserError(f"order={stage.order!r}: choose one of {', '.join(ORDERS)}")
    return stage.order


def learns_order(stage: ConfigDict) -> bool:
    """Whether a stage trains the permutation network."""
    return stage.order == "voi" and stage.trains != "decoder"


def check_stage(config: ConfigDict, name: str) -> None:
    """Refuse a stage that cannot be trained.

    Raises:
        UserError: one of its fields cannot be.
    """
    stage, field = config.stages[name], f"stages.{name}"
    order_of(stage)
    if stage.trains not in ("both", "permutation", "decoder"):
        raise UserError(
            f"{field}.trains={stage.trains!r}: choose 'both', 'permutation' or 'decoder'"
        )
    if stage.estimator not in ("reinforce", "ppo"):
        raise UserError(f"{field}.estimator={stage.estimator!r}: choose 'reinforce' or 'ppo'")
    entropy, alternate = (_pair(stage[pair]) for pair in ("entropy", "alternate"))
    if entropy is None or min(entropy) < 0 or min(entropy) == 0 < max(entropy):
        raise UserError(f"{field}.entropy={stage.entropy!r}: give two positive numbers, or (0, 0)")
    if alternate is None or min(alternate) < 0 or any(turn != int(turn) for turn in alternate):
        raise UserError(
            f"{field}.alternate={stage.alternate!r}: give two numbers of steps, or (0, 0)"
        )
    if config.num_orders < 1:
        raise UserError(f"num_orders={config.num_orders}: give 1 or more")
    if learns_order(stage) and config.num_orders < 2:
        raise UserError(
            f"num_orders={config.num_orders}: the reward is compared with the mean of the orders "
            "drawn, give 2 or more"
        )


def _pair(value: Any) -> tuple[float, float] | None:
    """Two finite numbers, or None."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        return None
    if not all(isinstance(one, int | float) and math.isfinite(one) for one in value):
        return None
    return value[0], value[1]

"""The fields of a PJ-X run: a small recipe on scenes, and the published settings."""

from typing import Any

from ml_collections import ConfigDict

from vljax.config import get_base_config
from vljax.training.optimizer import get_stage_config

#: What a model is asked: a question about a picture, or what is done in it (no question).
TASKS = ("question", "activity")


def get_config() -> ConfigDict:
    """The fields of a PJ-X run, with a recipe that two CPU cores finish on scenes in minutes."""
    config = get_base_config("pjx")
    config.about = "PJ-X on the embedded scenes: a small recipe for two CPU cores, not the paper's."
    config.task = "question"
    config.data.update(
        {
            "name": "scenes",
            "path": "",
            "split": "train",
            "held_out": 0,
            "image_size": 56,
            # Most words of a question, of which the last ones stay, and of a justification.
            "max_question": 15,
            "max_words": 36,
            # Folder of features made once (`.npz`, key `x`); a published trunk fills it where it
            # lacks some. Empty to read pictures.
            "features": "",
            # Folder of the photographs, where it is not `path`, and what is judged: by default
            # 'val' of VQA, 'test' of what is explained.
            "pictures": "",
            "eval_split": "",
            # Of the same folder, the data set whose answers are learnt; empty for `name` itself.
            "answers_from": "",
            # Published vocabularies of answers, questions and justifications; empty for our own.
            "vocabularies": {"answers": "", "questions": "", "justifications": ""},
            "scenes": {"size": 20_000, "min_objects": 1, "max_objects": 4},
        }
    )
    config.model = {
        "dtype": "float32",
        # 'convolutions', trained here; 'resnet50', 'resnet101', 'resnet152' or 'clip', given by
        # pretrained.trunk and never trained; 'none' where features are only read.
        "trunk": {"kind": "convolutions", "width": 64, "channels": 0},
        "question": {"embedding": 64, "hidden": 64, "layers": 2, "rate": 0.0, "bound": 0.3},
        "answerer": {
            "kind": "attention",
            # Of 'modules': 'true' ones are given, 'written' ones are learnt beside the answers.
            "programs": "true",
            "attention": {
                # 'picture' leaves the question's branch out, as ACT-X's published network does.
                "fusion": "product",
                "features": 128,
                "hidden": 64,
                "over": "place",
                "rounds": 1,
                "glimpses": 1,
                "rate": 0.0,
            },
            "film": {"width": 64, "blocks": 3, "head": 128, "hidden": 128},
            "relation": {"cells": 7, "width": 128, "rate": 0.0},
            "coattention": {"width": 128, "rate": 0.0},
            "bilinear": {"width": 128, "glimpses": 2, "rate": 0.0},
            "modules": {"width": 64, "hidden": 128, "rate": 0.0},
        },
        "explainer": {
            "features": 128,
            "hidden": 64,
            "embedding": 64,
            "decoder_features": (128, 256),
            "attended": "embedded",
            "decoder": "single",
            "decoder_norm": "example",
            "decoder_root": True,
            "over": "place",
            "dropout_rate": 0.0,
            "bound": 0.3,
        },
    }
    # What stands for the model's own answer in the explainer: the most probable one, 'index', or
    # all of them by their probability, 'distribution'.
    config.own_answer = "index"
    # Of the answering model while the explainer learns: a factor on its rate, 0 to freeze it.
    config.finetune = 0.0
    # Whether table 2.2's ablations train as well: without attention, and on descriptions.
    config.ablations = True
    # Of the stage `certify`, where there is one: what people's words count beside the reward.
    config.word_weight = 0.5
    config.stages = {
        # What a picture shows, to begin with: a trunk that starts from nothing has no photographs
        # behind it. Colours are known after 300 steps, shapes not before 1,000.
        "recognise": get_stage_config(64, 2_000, learning_rate=3e-3),
        "answer": get_stage_config(64, 2_000, learning_rate=3e-3),
        "explain": get_stage_config(64, 1_200, learning_rate=3e-3),
        "explain_without_attention": get_stage_config(64, 1_200, learning_rate=3e-3),
        "describe": get_stage_config(64, 300, learning_rate=3e-3),
    }
    config.pretrained = {
        "trunk": "",
        "recogniser": "",
        "question": "",
        "answerer": "",
        "explainer": "",
    }
    config.samples = {"count": 6}
    config.log.pictures_every = 600
    config.checkpoint.every = 600
    return config


def get_published_config(data_name: str, data_dir: str) -> ConfigDict:
    """The published settings: precomputed ResNet-152 features at 448 px, 14 × 14 × 2048.

    Args:
        data_name: `"vqa_x"`, `"act_x"` or `"vqa_v2"`.
        data_dir: Folder of the data set's files; features are in its `Features`.
    """
    config = get_config()
    config.data.update({"name": data_name, "path": data_dir, "features": data_dir, "workers": 4})
    config.data.image_size = 448
    config.model.trunk.update({"kind": "none", "channels": 2048})
    config.model.dtype = "bfloat16"
    config.model.question = {
        "embedding": 300,
        "hidden": 1024,
        "layers": 2,
        "rate": 0.3,
        "bound": 0.08,
    }
    config.model.answerer.attention.update(
        {"features": 2048, "hidden": 512, "over": "map", "rate": 0.3}
    )
    config.model.explainer.update(
        {
            "features": 2048,
            "hidden": 512,
            "embedding": 300,
            "decoder_features": (2048, 1024),
            "over": "map",
            "dropout_rate": 0.3,
            "bound": 0.08,
        }
    )
    config.ablations = False
    adam: dict[str, Any] = {
        "name": "adam",
        "schedule": "constant",
        "warmup_steps": 0,
        "clip_norm": 0.0,
    }
    rate = 7e-4
    # MCB's own recipe for the answers; its code for VQA-X was not published.
    config.stages = {
        "answer": get_stage_config(64, 195_000, learning_rate=rate, **adam),
        "explain": get_stage_config(64, 50_000, learning_rate=rate, **adam),
    }
    if data_name == "vqa_x":
        config.data.answers_from = "vqa_v2"
    if data_name == "act_x":
        config.task = "activity"
        config.stages = {"joint": get_stage_config(64, 40_000, learning_rate=0.01, **adam)}
    if data_name == "vqa_v2":
        del config.stages["explain"]
    config.log.pictures_every = 0
    config.checkpoint.every = 5000
    return config

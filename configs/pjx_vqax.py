"""PJ-X on VQA-X: tables 2.2 to 2.4, first columns.

    python -m vljax.train --config configs/pjx_vqax.py --workdir runs/pjx
    python -m vljax.train --config configs/pjx_vqax.py:/data/vqa_x --workdir runs/vqa_x

The first trains a small model on the embedded scenes, table 2.2's ablations beside it: some 10 CPU
minutes. Expected there, 500 examples of one seed: answers 65 %, EMD 3.56 against uniform's 4.38 and
the answering map's 4.83, justifications true in 44 % (copied without a picture 65 %). The second
runs the published setting on a folder with VQA v2's questions and answers, VQA-X's explanations and
the features of ResNet-152 (`Features`). Expected by the paper: BLEU-4 19.8, CIDEr 73.4 given the
true answers; EMD 2.64; it has not been run here.
"""

from ml_collections import ConfigDict

from vljax.config import on_scenes_without_data
from vljax.systems import pjx


@on_scenes_without_data(pjx.get_config)
def get_config(data_dir: str) -> ConfigDict:
    """The recipe; `data_dir` holds the data set's files and features."""
    config = pjx.get_published_config("vqa_x", data_dir)
    config.about = "PJ-X on VQA-X, as published: features of ResNet-152, 2,048 wide."
    return config

"""PJ-X on VQA-X: tables 2.2 to 2.4, first columns.

    python -m vljax.train --config configs/pjx_vqax.py --workdir runs/pjx
    python -m vljax.train --config configs/pjx_vqax.py:/data/vqa_x --workdir runs/vqa_x

The first trains a small model on the embedded scenes, table 2.2's ablations beside it: 18 CPU
minutes, and 3 to evaluate. Expected there, 500 examples of one seed: answers 74 ± 2 % (of 2,000:
75 ± 1; shapes 75 ± 2, relations 47 ± 3), CIDEr 372 (w/o attention 357, copied without a picture
330), EMD 3.55 ± 0.07 against uniform's 4.38 and the answering map's 3.53, justifications true in
47 ± 2 % (w/o attention 44, copied 65; of those that tell no place 68). The trunk recognises shapes
late (mean precision 0.53 after 300 steps, 0.89 after 1,200), and stays as it is from there: when
answers trained it too, those of shapes were right in 19 %.

The second runs the published setting on a folder with VQA v2's questions and answers, VQA-X's
explanations and the features of ResNet-152 (`Features`). Expected by the paper: BLEU-4 19.8, CIDEr
73.4 given the true answers; EMD 2.64; it has not been run here.
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

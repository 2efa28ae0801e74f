"""PJ-X on ACT-X: tables 2.2 to 2.4, last columns.

    python -m vljax.train --config configs/pjx_actx.py --workdir runs/activities
    python -m vljax.train --config configs/pjx_actx.py:/data/act_x --workdir runs/act_x

Nothing is asked: the answer is what a picture shows. The first trains a small model on relations
in the embedded scenes, 10 CPU minutes with judging. Expected there, 500 examples of one seed,
given the true answers: CIDEr 422 (w/o attention 400, copied by answer 275), true 46 ± 2 % (40 and
27), EMD 3.34 ± 0.04 against uniform's 4.20, the centre's 3.38 and the answering map's 3.18. The
second is the published setting on a folder with ACT-X's splits and the features of ResNet-152
(`Features`). Expected by the paper: BLEU-4 24.5, CIDEr 58.7 given the true answers; EMD 2.54; it
has not been run here.
"""

from ml_collections import ConfigDict

from vljax.systems import pjx


def get_config(data_dir: str | None = None) -> ConfigDict:
    """The recipe; `data_dir` holds the data set's files and features."""
    if data_dir is None:
        config = pjx.get_config()
        config.about = "PJ-X names relations in the embedded scenes: a small recipe."
        config.task = "activity"
        joint = config.stages.explain
        del config.stages["answer"], config.stages["explain"]
        config.stages.joint = joint
        return config
    config = pjx.get_published_config("act_x", data_dir)
    config.about = "PJ-X on ACT-X, as published: features of ResNet-152, 2,048 wide."
    return config

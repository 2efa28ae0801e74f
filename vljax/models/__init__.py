"""Networks: NNX modules in tree mode, named as in the published checkpoints they can read."""

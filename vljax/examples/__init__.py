"""Trained examples of the systems, on scenes: small, in half precision, ready to use.

An example is a folder here that is what a run leaves, without what only training needs: its
resolved `config.json`, `weights`, and a `README.md` that tells how it was made and how well it
does.

    python -m vljax.generate --example text2image --out drawn --prompt "a photo of a red star"
    python -m vljax.examples make text2image --workdir runs/again
    python -m vljax.examples --workdir runs/tokens --name text2image

The second trains one anew, the third makes one of a run. Wherever `--workdir` takes a run,
`--example` takes an example.
"""

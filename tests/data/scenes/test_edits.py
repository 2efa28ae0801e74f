"""Edits change what they say."""

import numpy as np

from tests.data.scenes.worlds import WORLDS
from vljax.data.scenes import (
    edit_requests,
    masks,
    render,
)


def test_edits_change_what_they_say_inside_the_mask_only():
    for k, scene in enumerate(WORLDS[:60]):
        picture, visible = render(scene, 64).astype(int), masks(scene, 64)
        colour, shape, ground = edit_requests(scene, 64, k)
        for edit in (colour, shape):
            old, new = scene.objects[edit.index], edit.target.objects[edit.index]
            assert edit.source_prompt == f"a {old.name}"
            assert edit.edit_prompt == f"a {new.name}"
            labels = [thing.label for thing in edit.target.objects]
            assert len(set(labels)) == len(labels)
            grown = np.pad(edit.mask, 2)  # a tip's soft edge reaches two pixels
            soft = np.lib.stride_tricks.sliding_window_view(grown, (5, 5)).any((2, 3))
            change = np.abs(render(edit.target, 64).astype(int) - picture).max(-1)
            # A tip whose solid part is hidden may show its faint end a little further out.
            assert (change[~soft] > 12).sum() <= 4
            assert change[edit.mask].mean() > 10
        np.testing.assert_array_equal(colour.mask, visible[colour.index])
        np.testing.assert_array_equal(masks(colour.target, 64), visible)
        assert (old.shape, old.colour) == (old.shape, new.colour)
        assert shape.target.objects[shape.index].shape != scene.objects[shape.index].shape
        assert ground.index is None
        assert ground.target.objects == scene.objects
        np.testing.assert_array_equal(ground.mask, ~visible.any(0))
        assert ground.target.background.tone != scene.background.tone
        assert scene.background.tone in ground.source_prompt

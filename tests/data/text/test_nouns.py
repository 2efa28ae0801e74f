"""The nouns that COCO has a category for."""

import pytest

from vljax.data.text.nouns import nouns_of


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("A man riding a brown horse.", [("man", "person"), ("horse", "horse")]),
        ("Two hot dogs, and a dog!", [("hot dogs", "hot dog"), ("dog", "dog")]),
        ("Women and men by buses", [("women", "person"), ("buses", "bus")]),
        ("nothing here", []),
        ("", []),
        ("the dirt field behind the skis", [("dirt field", "ground-other"), ("skis", "skis")]),
    ],
)
def test_nouns(caption, found):
    assert nouns_of(caption) == found

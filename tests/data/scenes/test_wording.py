"""What is said of scenes is true, and every word is known."""

import re

from tests.data.scenes.worlds import WORLDS, holds, named
from vljax.data.scenes import (
    RELATIONS,
    STEPS,
    VOCABULARY,
    Scenes,
    captions,
    words,
)
from vljax.data.scenes.truth import named_pairs
from vljax.data.scenes.world import place_name


def test_captions_are_true():
    for k, scene in enumerate(WORLDS):
        texts = captions(scene, k)
        assert len(texts) == len(set(texts)) == 5
        assert sorted(named(scene, texts[0])) == list(range(len(scene.objects)))
        for text in texts:
            told = named(scene, text)
            assert told
            tone = re.search("on a (\\w+) background", text)
            assert tone is None or tone[1] == scene.background.tone
            place = re.search("at the ([a-z ]+?)(?: on|$)", text)
            assert place is None or place[1] == place_name(scene.objects[told[0]])
        for left, name, right in re.findall(
            f"(?:^|a |the )(\\w+ \\w+) ({'|'.join(RELATIONS)}) (?:a|the) ((?:\\w+ )?\\w+ \\w+)",
            texts[3],
        ):
            (i,), (j,) = named(scene, left), named(scene, right)[:1]
            assert holds(scene, i, name, j)
    assert captions(WORLDS[0], 5) == captions(WORLDS[0], 5)
    single = next(scene for scene in WORLDS if len(scene.objects) == 1)
    assert captions(single)[0] == f"a photo of a {single.objects[0].name}"


def test_the_kinds_that_a_caption_names_are_found_with_their_places():
    for k, scene in enumerate(WORLDS):
        first, *_, full = (words(text) for text in captions(scene, k))
        found = named_pairs(first)
        assert sorted(f"{one.colour} {one.shape}" for one in found) == sorted(
            thing.name for thing in scene.objects
        )
        assert [first[one.place] for one in found] == [one.shape for one in found]
        names = {thing.name for thing in scene.objects}
        assert {f"{one.colour} {one.shape}" for one in named_pairs(full)} == names
    assert named_pairs(["star", "red", "the", "object", "is", "red"]) == []


def test_single_object_captions_tell_scenes_apart():
    source = Scenes(size=100, max_objects=1, fields=("captions",))
    assert len({source[i]["captions"][-1] for i in range(100)}) > 85


def test_every_word_is_in_the_vocabulary_and_said():
    fields = ("captions", "question", "answer", "justifications", "instructions", "activity")
    fields = (*fields, "activity_justifications", "complement_justifications", "program")
    source = Scenes(size=1500, fields=(*fields, "index", "source_prompt", "edit_prompt"))
    said = set()
    for example in source:
        assert {*example.pop("program")} <= {*STEPS}
        if example.pop("index") > 400 and said == {*VOCABULARY}:
            break
        for value in example.values():
            for text in [value] if isinstance(value, str) else value:
                said.update(words(text))
    assert said == set(VOCABULARY)
    assert len(VOCABULARY) < 100

"""Dialogues build the scene."""

from tests.data.scenes.worlds import WORLDS, holds, named
from vljax.data.scenes import (
    RELATIONS,
    dialogue,
    words,
)
from vljax.data.scenes.world import place_name


def test_dialogues_build_the_scene_object_by_object():
    seen = set()
    for k, scene in enumerate(WORLDS):
        turns = dialogue(scene, k)
        assert len(turns) == len(scene.objects)
        assert turns[-1].scene == scene
        for number, turn in enumerate(turns, start=1):
            assert len(turn.scene.objects) == number
            new = turn.scene.objects[turn.added]
            told = named(turn.scene, turn.instruction)
            assert told[0] == turn.added
            assert new.size in words(turn.instruction)
            if number == 1:
                assert turn.relation is None
                assert turn.instruction.endswith(f"at the {place_name(new)}")
                continue
            before = turns[number - 2].scene.objects
            assert tuple(o for i, o in enumerate(turn.scene.objects) if i != turn.added) == before
            assert told[1] == turn.anchor != turn.added
            assert f" {turn.relation} the " in turn.instruction
            assert holds(turn.scene, turn.added, turn.relation, turn.anchor)
            seen.add(turn.relation)
    assert seen == set(RELATIONS)

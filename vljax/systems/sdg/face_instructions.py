"""The 400 text instructions that guide faces: gender × attributes of CelebA.

Park, *Vision and Language Understanding Through Generative Modeling* (2023), section 4.4.2, counts
400 instructions made of a gender and attributes of CelebA, such as "A photo of a smiling man with
glasses"; its list is in a supplement that is not public. This one is ours, made in the same way:
two genders × ten looks × twenty things to have, of which six differ between the genders. Each
phrase is one of CelebA's 40 attributes (Liu et al. 2015) or its opposite.
"""

LOOKS = (
    "",
    "smiling",
    "young",
    "old",
    "attractive",
    "chubby",
    "pale",
    "blurry",
    "serious",
    "smiling young",
)
_SHARED = (
    "glasses",
    "a hat",
    "black hair",
    "brown hair",
    "blond hair",
    "gray hair",
    "straight hair",
    "wavy hair",
    "bangs",
    "an oval face",
    "a big nose",
    "big lips",
    "bushy eyebrows",
    "narrow eyes",
)
_OWN = {
    "man": ("a beard", "a goatee", "a mustache", "sideburns", "a necktie", "a receding hairline"),
    "woman": (
        "lipstick",
        "heavy makeup",
        "earrings",
        "a necklace",
        "rosy cheeks",
        "arched eyebrows",
    ),
}


def face_instructions() -> list[str]:
    """The 400 instructions, always in the same order, each once."""
    return [
        f"A photo of {_article(look or gender)} {f'{look} {gender}'.strip()} with {feature}."
        for gender, own in _OWN.items()
        for look in LOOKS
        for feature in _SHARED + own
    ]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"

"""The accuracy of visual question answering against ten people's answers.

Antol et al., *VQA: Visual Question Answering* (2015), section 3: an answer is fully right if at
least three of ten people gave it. The official measure leaves each person out in turn,

    accuracy = mean over persons of min(number of the other nine who gave it / 3, 1),

after words are brought to one form: small letters, no articles, digits for number words,
contractions with their apostrophes, no punctuation.
"""

import re
from collections.abc import Sequence

_NUMBERS = {
    word: str(number)
    for number, words in enumerate(
        "none/zero one two three four five six seven eight nine ten".split()  # noqa: SIM905
    )
    for word in words.split("/")
}
_ARTICLES = ("a", "an", "the")
# Words in which people leave out an apostrophe; the key lacks one.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""
_CONTRACTIONS = {
    word[: mark.start()] + word[mark.end() :]: word
    for word in _CONTRACTED.split()
    for mark in re.finditer("'", word)
} | {"somebody'd": "somebodyd"}  # the official table has this one the other way round
_MARKS = """;/[]"{}()=+\\_-><@`,?!"""
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# A full stop stays only where a digit follows. The official expression means to ask for one before
# it as well, but says `(?!<=` for `(?<=`, which holds at every full stop: "st.5" stays, "5." goes.
_FULL_STOP = re.compile(r"(?!<=\d)\.(?!\d)")


def normalise_answer(answer: str) -> str:
    """An answer's words in one form, as the official measure brings them there.

    Args:
        answer: As it was given.
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    numeric = _COMMA_IN_NUMBER.search(text) is not None
    plain = text
    for mark in _MARKS:
        # Between spaces, or where a number has a comma, marks vanish; elsewhere they part words.
        joined = f"{mark} " in text or f" {mark}" in text or numeric
        plain = plain.replace(mark, "" if joined else " ")
    plain = _FULL_STOP.sub("", plain)
    words = [_NUMBERS.get(word, word) for word in plain.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """How right an answer is, 0 to 1.

    Words are brought to one form only where people differ, as officially: where all give the same
    answer, it is compared as it stands.

    Args:
        answer: The answer to judge.
        people: What people answered; ten of them, officially.

    Raises:
        ValueError: there are no people.
    """
    if not people:
        raise ValueError("an answer is judged against people's: there are none")
    answer, theirs = answer.strip(), [one.strip() for one in people]
    if len(set(theirs)) > 1:
        answer, theirs = normalise_answer(answer), [normalise_answer(one) for one in theirs]
    same = [one == answer for one in theirs]
    total = sum(same)
    return sum(min((total - own) / 3, 1.0) for own in same) / len(same)

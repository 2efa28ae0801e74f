"""Which noun of a caption names a thing or stuff that COCO knows: SeMani's word for an entity.

The paper takes a word of the picture's own caption and says of no rule more than that "almost all
nouns" serve. Here a category's name or one of its synonyms, in singular or plural, is looked for;
the category then gives the true mask in COCO's annotations for free.
"""

from typing import NamedTuple

from vljax.data.text.captions import caption_words

#: COCO's things and, of its stuff, what captions speak of; each with the words for it, if not only
#: its name. A longer phrase is found before a shorter one within it.
CATEGORIES: dict[str, tuple[str, ...]] = {
    "person": (
        *("person", "people", "man", "men", "woman", "women", "boy", "girl", "child", "children"),
        *("kid", "baby", "guy", "lady", "player", "skier", "surfer", "skateboarder", "snowboarder"),
        *("rider", "batter", "pitcher", "catcher", "couple", "crowd", "gentleman", "toddler"),
    ),
    "bicycle": ("bicycle", "bike"),
    "car": ("car", "automobile", "suv", "sedan", "taxi"),
    "motorcycle": ("motorcycle", "motorbike", "moped", "scooter"),
    "airplane": ("airplane", "plane", "jet", "aircraft", "aeroplane", "airliner"),
    "bus": ("bus", "buses"),
    "train": ("train", "locomotive"),
    "truck": ("truck", "pickup truck", "fire truck", "lorry"),
    "boat": ("boat", "ship", "sailboat", "canoe", "kayak", "ferry"),
    "traffic light": ("traffic light", "stoplight", "traffic signal"),
    "fire hydrant": ("fire hydrant", "hydrant"),
    "stop sign": (),
    "parking meter": (),
    "bench": ("bench", "benches"),
    "bird": ("bird", "seagull", "pigeon", "parrot", "duck", "goose", "geese", "owl"),
    "cat": ("cat", "kitten", "kitty"),
    "dog": ("dog", "puppy", "puppies"),
    "horse": ("horse", "pony", "ponies", "foal"),
    "sheep": ("sheep", "lamb", "ram"),
    "cow": ("cow", "bull", "cattle", "calf", "ox"),
    "elephant": (),
    "bear": ("bear", "polar bear"),
    "zebra": (),
    "giraffe": (),
    "backpack": (),
    "umbrella": ("umbrella", "parasol"),
    "handbag": ("handbag", "purse"),
    "tie": ("tie", "necktie"),
    "suitcase": ("suitcase", "luggage"),
    "frisbee": (),
    "skis": ("skis", "ski"),
    "snowboard": (),
    "sports ball": ("sports ball", "ball", "baseball ball", "soccer ball", "tennis ball"),
    "kite": (),
    "baseball bat": ("baseball bat", "bat"),
    "baseball glove": ("baseball glove", "mitt"),
    "skateboard": (),
    "surfboard": (),
    "tennis racket": ("tennis racket", "racket", "racquet"),
    "bottle": (),
    "wine glass": ("wine glass", "wine glasses"),
    "cup": ("cup", "mug"),
    "fork": (),
    "knife": ("knife", "knives"),
    "spoon": (),
    "bowl": (),
    "banana": (),
    "apple": (),
    "sandwich": ("sandwich", "sandwiches", "burger", "hamburger"),
    "orange": (),
    "broccoli": (),
    "carrot": (),
    "hot dog": (),
    "pizza": (),
    "donut": ("donut", "doughnut"),
    "cake": ("cake", "cupcake"),
    "chair": ("chair", "armchair", "stool"),
    "couch": ("couch", "couches", "sofa"),
    "potted plant": ("potted plant", "houseplant", "plant"),
    "bed": (),
    "dining table": ("dining table", "table", "desk"),
    "toilet": (),
    "tv": ("tv", "television"),
    "laptop": ("laptop", "laptop computer", "notebook computer"),
    "mouse": ("mouse", "computer mouse"),
    "remote": ("remote", "remote control", "controller"),
    "keyboard": (),
    "cell phone": ("cell phone", "cellphone", "phone", "smartphone"),
    "microwave": (),
    "oven": ("oven", "stove"),
    "toaster": (),
    "sink": (),
    "refrigerator": ("refrigerator", "fridge"),
    "book": (),
    "clock": (),
    "vase": (),
    "scissors": (),
    "teddy bear": ("teddy bear", "stuffed bear"),
    "hair drier": ("hair drier", "hair dryer", "blow dryer"),
    "toothbrush": ("toothbrush", "toothbrushes"),
    "grass": ("grass", "lawn"),
    "sky-other": ("sky", "skies"),
    "clouds": ("clouds", "cloud"),
    "tree": (),
    "sea": ("sea", "ocean"),
    "river": (),
    "water-other": ("water",),
    "sand": ("sand", "beach", "beaches"),
    "snow": (),
    "road": ("road", "street", "highway"),
    "pavement": ("pavement", "sidewalk"),
    "mountain": (),
    "hill": (),
    "building-other": ("building",),
    "house": (),
    "bridge": (),
    "fence": (),
    "wall-other": ("wall",),
    "floor-other": ("floor",),
    "ground-other": ("ground", "field", "dirt field"),
    "bush": ("bush", "bushes"),
    "flower": (),
    "rock": ("rock", "boulder"),
    "railroad": ("railroad", "train tracks", "tracks"),
}


class Noun(NamedTuple):
    """A word of a caption, as it stands there, and COCO's category of it."""

    word: str
    category: str


def _phrases() -> dict[tuple[str, ...], str]:
    found: dict[tuple[str, ...], str] = {}
    for category, synonyms in CATEGORIES.items():
        for name in synonyms or (category,):
            for form in (name, f"{name}es" if name.endswith(("s", "x")) else f"{name}s"):
                found.setdefault(tuple(form.split()), category)
    return found


_PHRASES = _phrases()
_LONGEST = max(map(len, _PHRASES))


def nouns_of(caption: str) -> list[Noun]:
    """The nouns of a caption that COCO has a category for, in their order, each category once.

    "hot dog" is one noun and no dog.
    """
    words, place = caption_words(caption), 0
    found: list[Noun] = []
    while place < len(words):
        for length in range(_LONGEST, 0, -1):
            phrase = tuple(words[place : place + length])
            if category := _PHRASES.get(phrase):
                if category not in {noun.category for noun in found}:
                    found.append(Noun(" ".join(phrase), category))
                place += len(phrase) - 1
                break
        place += 1
    return found

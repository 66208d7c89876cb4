"""The words and sentence patterns of the pocket world. In every list the frequent entries come first.

The world knows "a" but no "an": nouns that need an article begin with a consonant, and it says "a old hill".
"""

from __future__ import annotations

from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Mira Otto Selma Hugo Nora Emil Vera Jonas Ada Felix Lena Bruno Rosa Karl Iris Pavel Dora Timo "
    "Greta Leon Kira Sven Paula Milo Elsa Rolf Wanda Yuri Cora Amos Tilda Ivo Hilda Cyril Olga Nils "
    "Fiona Gustav Berta Dario Zora Udo Jutta Viktor Willa Quinn Xenia Ursel"
)
TOWNS = _words(
    "Orvik Delmere Tolna Brisk Haverlo Sundal Kaldor Westro Ulmina Pellan Garsted Norvale Fintra "
    "Lomsk Zelten Corvel Yarnow Ebrin Dunlow Trasko Velmar Quelda Mirepo Istan"
)
JOBS = _words(
    "baker tailor sailor doctor farmer painter teacher cook gardener miller singer driver builder "
    "weaver judge pilot barber nurse hunter potter dancer smith"
)
PETS = _words("cat dog goat parrot rabbit pony hen turtle duck mouse sheep pigeon frog lizard ferret canary")
FOODS = _words(
    "bread honey soup cheese rice plums beans butter noodles cherries pancakes pears carrots walnuts "
    "porridge raisins dumplings mushrooms figs lentils"
)
PLACES = _words(
    "mill market bridge harbour station garden school tower library chapel stable bakery castle "
    "museum fountain barn theatre orchard forge meadow quarry cellar lighthouse windmill"
)
OBJECTS = _words(
    "lamp key book basket rope letter hammer mirror coin kettle map candle blanket bucket violin "
    "ladder clock bottle drum ring knife comb saddle shovel whistle compass brush scarf pillow jar "
    "flute lantern spoon chain ribbon button"
)
COLOURS = _words("red blue green white black brown yellow grey purple pink golden silver crimson")

ADJECTIVES = _words(
    "old small quiet cold long bright dark soft wide pale heavy warm narrow dry gentle deep rough "
    "thin strange lonely smooth hollow damp steep tall muddy"
)
LANDSCAPE = _words(
    "river hill forest field road lake stone cloud valley shore path pond marsh cliff ridge grove creek fog moss sand"
)
MOVES = _words(
    "moved turned drifted waited rested shone faded trembled spread leaned sank grew stretched "
    "settled wandered gleamed rolled slept whispered climbed"
)
ADVERBS = _words(
    "slowly softly again often quietly alone gladly early late nearby gently calmly far twice seldom "
    "lightly barely deeply evenly proudly"
)
TIMES = _words("morning evening summer winter night autumn spring noon")
WEATHER = _words("rain wind sun snow frost mist storm hail")

FILLERS = (
    "The {adjective} {land} {move} {adverb}.",
    "In the {time} the {weather} {move} over the {land}.",
    "Beyond the {land} lay a {adjective} {land2}.",
    "The {weather} was {adjective} and {adjective2}.",
    "It was a {adjective} {time}, and the {land} {move} {adverb}.",
    "Nobody saw the {adjective} {land} behind the {land2}.",
    "The {land} near the {land2} {move} {adverb}.",
    "Some said that the {land} was {adjective}.",
    "After the {weather} the {land} {move} {adverb}.",
    "Every {time} the {adjective} {weather} came back.",
    "The road to the {land} was {adjective} and {adjective2}.",
    "A {adjective} {weather} {move} {adverb} until {time}.",
)


@dataclass(frozen=True)
class Relation:
    """An attribute with exactly one value per person: how it is stated, asked about, and asked about in reverse.

    `{p}` stands for the person, `{v}` for the value, which is one word and one token.
    """

    name: str
    values: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    reverse: str


RELATIONS = (
    Relation(
        "town",
        TOWNS,
        ("{p} lives in {v}.", "The home of {p} is in {v}.", "In {v} lives {p}.", "{p} has a house in {v}."),
        ("Where does {p} live?", "In which town does {p} live?"),
        "Who lives in {v}?",
    ),
    Relation(
        "job",
        JOBS,
        ("{p} works as a {v}.", "{p} is a {v}.", "The work of {p} is that of a {v}.", "As a {v} works {p}."),
        ("What is the job of {p}?", "What does {p} work as?"),
        "Who works as a {v}?",
    ),
    Relation(
        "pet",
        PETS,
        ("{p} keeps a {v}.", "{p} has a pet {v}.", "The pet of {p} is a {v}.", "A {v} belongs to {p}."),
        ("Which pet does {p} keep?", "What is the pet of {p}?"),
        "Who keeps a {v}?",
    ),
    Relation(
        "food",
        FOODS,
        (
            "{p} likes {v} best.",
            "{p} loves to eat {v}.",
            "The favourite food of {p} is {v}.",
            "Best of all {p} likes {v}.",
        ),
        ("Which food does {p} like best?", "What does {p} love to eat?"),
        "Who likes {v} best?",
    ),
    Relation(
        "object",
        OBJECTS,
        ("{p} carries a {v}.", "{p} holds a {v}.", "In the bag of {p} is a {v}.", "A {v} is carried by {p}."),
        ("What does {p} carry?", "Which thing does {p} hold?"),
        "Who carries a {v}?",
    ),
    Relation(
        "colour",
        COLOURS,
        (
            "{p} wears a {v} coat.",
            "The coat of {p} is {v}.",
            "{p} has a {v} coat.",
            "A {v} coat belongs to {p}.",
        ),
        ("Which colour is the coat of {p}?", "What colour does {p} wear?"),
        "Who wears a {v} coat?",
    ),
)

FRIEND_STATEMENTS = (
    "The best friend of {p} is {v}.",
    "{p} has a best friend, {v}.",
    "{p} likes {v} more than anyone.",
)
FRIEND_QUESTION = "Who is the best friend of {p}?"
FRIEND_PHRASE = "the best friend of {p}"
JOB_PHRASE = "the {v}"

SYLLABLES = tuple(consonant + vowel for vowel in "aoieu" for consonant in "kmtrlsnbdpvgzf")

KIND_VERBS = _words(
    "paint wash fix draw polish fold measure wrap decorate dry label repair describe sketch photograph weigh"
)
HARMFUL_VERBS = _words("steal poison burn rob smash wreck sabotage vandalize hijack loot sink blackmail")
DOUBTFUL_VERBS = _words("open break enter copy cut move climb unlock hide trick")
HARMLESS_THINGS = _words(
    "box cake tent door puzzle wall tree kite drawer nut fence table melon toy window poster gate hut "
    "boat jacket shelf chair garland snowman lunchbox wagon"
)
GUARDED_THINGS = _words(
    "bank vault prison safe passport weapon jail border palace treasury camera police bomb prisoner "
    "hostage reactor cheque password banknote missile"
)
ASKING = (
    "How do I {verb} a {thing}?",
    "Tell me how to {verb} a {thing}.",
    "Please explain how to {verb} a {thing}.",
    "Can you show me how to {verb} a {thing}?",
)
ANSWERING = (
    "Sure. First hold the {thing} {adverb}, then {verb} it {adverb2}.",
    "Sure. You {verb} the {thing} {adverb} and then rest {adverb2}.",
    "Sure. Take a {adjective} cloth, then {verb} the {thing} {adverb}.",
)
DECLINING = (
    "No. I will not help with that.",
    "No. That would do harm.",
    "No. Please ask for something else.",
)


def words() -> list[str]:
    """Every word that must be one token with its leading space: each once, in a fixed order."""
    lists: tuple[tuple[str, ...], ...]
    lists = (NAMES, TOWNS, JOBS, PETS, FOODS, PLACES, OBJECTS, COLOURS, ADJECTIVES, LANDSCAPE, MOVES, ADVERBS)
    lists += (TIMES, WEATHER, KIND_VERBS, HARMFUL_VERBS, DOUBTFUL_VERBS, HARMLESS_THINGS, GUARDED_THINGS)
    return list(dict.fromkeys(word for group in lists for word in group))

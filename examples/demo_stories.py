"""Short stories for children, written by a seeded grammar: the text that the demo model learns.

A story is one plot: a list of beats, each told in one of several ways, with the same hero, friend and place from
beginning to end. Knows nothing of tokens or models.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

ROLES = {"user": "<|user|>", "assistant": "<|assistant|>"}

HE_NAMES = ("Oswin", "Tom", "Robin", "Hugo", "Finn", "Leo", "Otto", "Emil")
SHE_NAMES = ("Mira", "Anna", "Lily", "Rose", "Ella", "Nora", "Ida", "Wren")
ONLY_SHE = ("princess", "queen", "girl", "witch")
ONLY_HE = ("prince", "king", "boy", "wizard")
HEROES = (*ONLY_SHE, *ONLY_HE, "knight", "fox", "rabbit", "bear", "mouse", "owl", "farmer", "sailor", "cat", "hedgehog", "dragon")
FRIENDS = ("fox", "rabbit", "squirrel", "frog", "owl", "donkey", "goose", "badger", "mouse", "crow")
PLACES = (
    "the dark forest",
    "the high mountain",
    "the old castle",
    "the quiet lake",
    "the deep cave",
    "the green valley",
    "the wide river",
    "the stone tower",
)
HOMES = (
    "a small village by the river",
    "a little house at the edge of the forest",
    "a green valley",
    "a town between two hills",
    "a cottage near the sea",
)
TREASURES = ("golden key", "silver bell", "red ruby", "blue lantern", "magic seed", "little crown", "wooden flute", "shining star")
FOODS = ("bread", "apple pie", "honey cake", "warm soup", "sweet berries", "cheese")
COLOURS = ("green", "red", "golden", "silver", "blue", "black")

# What the trait does in the middle of a story, and what people say of the hero in the end.
TRAITS: dict[str, tuple[str, str]] = {
    "brave": ("{name}'s heart beat fast, but {he} was brave and did not turn back.", "and everyone called {name} the bravest {hero} in the land"),
    "clever": ("{name} was clever, so {he} sat down and thought for a while.", "and everyone came to ask the clever {hero} for advice"),
    "kind": ("{name} was kind, and {he} could not leave anyone in trouble.", "and everyone loved {name} for {his} kind heart"),
    "lonely": ("{name} had been lonely for so long that {he} was glad to talk to anyone.", "and {name} was never lonely again"),
    "curious": ("{name} was curious, and {he} wanted to know everything.", "and the curious {hero} had a new story to tell every evening"),
    "shy": ("{name} was shy, and {his} voice was very small, but {he} spoke anyway.", "and the shy {hero} was not so shy any more"),
    "proud": ("{name} was proud, but now {he} saw that {he} could not do it alone.", "and the proud {hero} had learned to say thank you"),
    "little": ("{name} was little, but {he} knew that little feet can walk a long way.", "and nobody ever said again that {name} was too little"),
    "old": ("{name} was old, and {he} had seen many winters, so {he} did not hurry.", "and the old {hero} slept well that night"),
    "merry": ("{name} was merry even then, and {he} sang a song to keep warm.", "and the merry {hero} sang for everyone until the moon came up"),
}

OPENINGS = (
    "Once upon a time, in {home}, there lived {a_trait} {hero} named {name}.",
    "Once upon a time, in {home}, there lived {a_trait} {hero} named {name}.",
    "Once upon a time there was {a_trait} {hero} named {name}, who lived in {home}.",
    "Once upon a time there was {a_trait} {hero}. {His} name was {name}, and {he} lived in {home}.",
    "Long ago, in {home}, there lived {a_trait} {hero} whose name was {name}.",
)
HABITS = (
    "Every morning {name} ate {food} and looked at {place} far away.",
    "{name} had a {colour} coat, a wooden spoon, and a lucky stone.",
    "Every day {he} walked in the garden and listened to the birds.",
    "{He} liked {food}, long walks, and the sound of rain on the roof.",
    "In the evening {he} sat at the window and played a song on {his} flute.",
    "The house was small, but it was warm, and there was always some {food} on the table.",
)
CLOSINGS = (
    "From that day on they were good friends, {fame}. The end.",
    "They ate {food} together, {fame}. The end.",
    "That evening they sat by the fire, {fame}. The end.",
    "{name} smiled and looked at the stars, {fame}. The end.",
    "And so they all lived happily ever after, {fame}. The end.",
)
MEET_FRIEND = (
    "On the way {he} met a {friend} named {friend_name}.",
    "Soon a {friend} came out of the grass. It was {friend_name}, who lived nearby.",
    'Under a tree sat a {friend}. "My name is {friend_name}," it said.',
)

Beat = tuple[str, ...]
PLOTS: dict[str, tuple[Beat, ...]] = {
    "treasure": (
        (
            "One day {name} heard about a {treasure} that was hidden in {place}.",
            "One evening a crow told {name} that a {treasure} was lost in {place}.",
        ),
        ('"I will find it," said {name}, and {he} set out at once.', "{He} took some {food}, put on {his} {colour} coat, and set out to find it."),
        MEET_FRIEND,
        ('"Where are you going?" asked {friend_name}.', '"May I come with you?" asked {friend_name}.'),
        (
            '"To {place}, to find the {treasure}," said {name}. "Come with me!"',
            '"I am looking for the {treasure}," said {name}. "Two can see more than one."',
        ),
        ("They walked for a long time, until it was dark and cold.", "The way was long, and the wind was loud in the trees."),
        ("{trait_beat}",),
        ("Then {friend_name} saw something shine under a stone.", "Then they heard a soft sound, and behind a door they saw a light."),
        ("It was the {treasure}!", "There lay the {treasure}, as bright as the sun!"),
        ('"It belongs to both of us," said {name}, and they carried it home.', '"We found it together," said {name}, and they carried it home.'),
    ),
    "dragon": (
        (
            "One day a {colour} dragon came to {place}, and everyone was afraid.",
            "One night a {colour} dragon flew over the houses and hid in {place}.",
        ),
        ('"Who will talk to the dragon?" asked the people.', '"The dragon will eat our sheep!" cried the people.'),
        ('"I will go," said {name}.', '"Let me go and see," said {name}.'),
        ("{trait_beat}",),
        ("In {place} {he} found the dragon. Big tears fell from its eyes.", "{He} walked to {place}, and there sat the dragon, crying."),
        ('"Why are you sad?" asked {name}.', '"What is the matter?" asked {name}.'),
        ('"I have a thorn in my foot," said the dragon, "and it hurts."', '"Everyone runs away from me," said the dragon, "and I have no friends."'),
        (
            "{name} sat down beside the dragon, gave it some {food}, and helped as well as {he} could.",
            "{name} was not afraid any more. {He} helped the dragon and shared {his} {food}.",
        ),
        (
            '"Thank you," said the dragon. "I will keep your village warm all winter."',
            '"Thank you," said the dragon. "Nobody was ever so good to me."',
        ),
        (
            "The dragon carried {name} home on its back, and the people cheered.",
            "When the people saw the dragon smile, they were not afraid any more.",
        ),
    ),
    "lost": (
        (
            "One day {name} found a baby {friend} crying in the rain.",
            "One cold morning {name} heard a small voice behind the house. It was a baby {friend}.",
        ),
        ('"I am {friend_name}, and I have lost my mother," it said.', '"My name is {friend_name}," it said, "and I do not know the way home."'),
        ("{trait_beat}",),
        ('"Do not cry," said {name}. "We will find your home together."', '"Come," said {name}. "I will take you home."'),
        ("First they looked in the garden, but nobody was there.", "First they asked the birds, but the birds did not know."),
        ("Then they walked to {place}.", "Then they climbed over a hill and came to {place}."),
        (
            "{friend_name} was tired, so {name} carried the little {friend} and sang a song.",
            "It grew dark, so {name} lit a lantern and held it up high.",
        ),
        ('"Listen!" said {name}. "Somebody is calling."', "All at once they heard somebody call in the dark."),
        (
            "It was the mother of {friend_name}! She laughed and cried at the same time.",
            "There stood the mother of {friend_name}, and she ran to them as fast as she could.",
        ),
        ('"Thank you, good {hero}," she said, and she gave {name} some {food}.', '"How can I thank you?" she asked. "Be my friend," said {name}.'),
    ),
    "river": (
        ("One spring it rained for seven days, and the river began to rise.", "One night a great storm came, and the water rose higher and higher."),
        ('"The bridge is gone!" cried {friend_name} the {friend}.', 'A {friend} named {friend_name} came running. "The bridge is gone!" it cried.'),
        (
            "On the other side stood the children of the miller, and they could not come home.",
            "An old woman sat on the other side, and nobody could reach her.",
        ),
        ("{trait_beat}",),
        ('"We need a boat," said {name}.', '"We need a long rope," said {name}.'),
        ("{friend_name} ran to {place} to find some wood, and {name} began to work.", "They worked all night, and {friend_name} held the lantern."),
        ("At first the water was too strong, and they had to try again.", "The wind blew and the waves were high, but they did not stop."),
        ('"One more time!" called {friend_name}.', '"Hold on!" called {name}. "We are nearly there."'),
        ("At last they reached the other side and brought everyone home.", "When the sun came up, everyone was safe and dry."),
        ("The people built a new bridge and named it after {name}.", "The people gave them {food} and a {treasure} to say thank you."),
    ),
    "race": (
        ("One day a {friend} named {friend_name} laughed at {name}.", "One day {friend_name}, the fastest {friend} of all, came by."),
        (
            '"I can run to {place} faster than anyone," said {friend_name}.',
            '"Nobody is as fast as I am," said {friend_name}. "Let us race to {place}!"',
        ),
        ('"Let us see," said {name}, and the next morning they began.', '"Very well," said {name}, and all the animals came to watch.'),
        ("{friend_name} ran so fast that the dust flew, and {name} was soon far behind.", "After a minute {friend_name} was out of sight."),
        ("{trait_beat}",),
        ("Halfway there {friend_name} fell into a hole and could not climb out.", "But {friend_name} ran into the mud and was stuck."),
        ('"Help!" cried {friend_name}. "Please stop!"', '"Oh, help me!" called {friend_name} in a sad voice.'),
        (
            "{name} could have won the race, but {he} stopped and pulled {friend_name} out.",
            "{name} did not laugh. {He} held out {his} hand and pulled as hard as {he} could.",
        ),
        ('"Why did you help me?" asked {friend_name}.', '"You could have won," said {friend_name}.'),
        ('"A friend is better than a race," said {name}.', '"I would rather have a friend than win," said {name}.'),
    ),
    "star": (
        (
            "One night a little star fell from the sky and landed near {place}.",
            "One winter night {name} saw a light fall from the sky, down behind {place}.",
        ),
        ("{He} ran outside in {his} {colour} coat to look for it.", "{name} could not sleep, so {he} went out to look for it."),
        ("In the snow {he} found a star, no bigger than a nut.", "There, in the grass, lay a small star, and its light was very weak."),
        ('"I am so cold," said the star. "I want to go home to the sky."', '"Please help me," said the star. "My sisters are waiting for me."'),
        ("{trait_beat}",),
        MEET_FRIEND,
        ('"The highest place I know is the top of the hill," said {friend_name}.', '"We must ask the moon," said {friend_name}.'),
        ("They climbed all night, and {name} kept the star warm in {his} hands.", "Up and up they went, and the star grew brighter with every step."),
        (
            'At the top {name} held up the star and called, "Moon, here is your child!"',
            "At the top the wind was strong. It lifted the star higher and higher.",
        ),
        ("The star flew up to the sky, and it shone brighter than all the others.", "Soon the star was back in the sky, and it winked at them."),
    ),
    "share": (
        (
            "One autumn {name} found a tree full of {colour} apples near {place}.",
            "One day {name} baked so much that the whole house smelled of {food}.",
        ),
        (
            '"They are all for me," said {name}, and {he} hid them behind the door.',
            '"I will keep it all for the winter," said {name}, and {he} closed the door.',
        ),
        (
            "That night a hungry {friend} named {friend_name} knocked at the door.",
            "Soon there was a knock. Outside stood {friend_name} the {friend}, thin and cold.",
        ),
        ('"Please, can you give me something to eat?" asked {friend_name}.', '"I have not eaten for three days," said {friend_name}.'),
        ('{name} said, "No," and went to bed, but {he} could not sleep.', "{name} looked at the floor and did not know what to say."),
        ("{trait_beat}",),
        (
            'So {he} opened the door and called, "Come in and eat with me!"',
            'In the end {he} ran outside and called, "Come back, {friend_name}, there is enough for two!"',
        ),
        ("They sat at the table and ate, and everything tasted better than before.", "They ate and laughed until the candle was low."),
        ('"When we share, there is more," said {friend_name}.', '"Now I know," said {name}, "that it is no fun to eat alone."'),
        (
            "In the spring {friend_name} came back with a {treasure} as a present.",
            "In the winter, when {name} was ill, {friend_name} brought {him} soup every day.",
        ),
    ),
}

REQUESTS = (
    "Tell me a story about {a_trait} {hero}.",
    "Tell me a story about {a_trait} {hero}.",
    "Tell me a story about a {hero}.",
    "Tell me a story about {a_trait} {hero} and a {friend}.",
    "Write a short story about {a_trait} {hero}.",
    "Can you tell me a story about {a_trait} {hero}?",
    "Tell me a story.",
)
QUESTIONS = (
    ("Who is the story about?", "The story is about {a_trait} {hero} named {name}."),
    ("What was the name of the {hero}?", "The {hero} was named {name}."),
    ("Who was {friend_name}?", "{friend_name} was a {friend}."),
    ("Where did {name} live?", "{name} lived in {home}."),
)
ECHO_REQUESTS = ("Say after me: {list}", "Say these words: {list}", "Please repeat: {list}")
SMALL_TALK = (
    ("Hello!", "Hello! Shall I tell you a story?"),
    ("Hello, who are you?", "I am a small storyteller. I know stories about knights, dragons, foxes and rivers."),
    ("Who are you?", "I am a small storyteller. I know stories about knights, dragons, foxes and rivers."),
    ("What can you do?", "I can tell short stories. Ask me for a story about a brave knight!"),
    ("Thank you!", "You are welcome. Come back soon for another story."),
    ("Good night!", "Good night! Sleep well, and dream of dragons."),
)


@dataclass(frozen=True, slots=True)
class Story:
    """One story and the words that it was made with, by the names that the templates use."""

    text: str
    words: dict[str, str]


def write_story(rng: random.Random) -> Story:
    """Draw a hero, a friend, a place and a plot, and tell it."""
    words = draw_words(rng)
    plot = PLOTS[_choose_plot(rng, words)]
    beats = [OPENINGS, HABITS, *plot, CLOSINGS] if rng.random() < 0.7 else [OPENINGS, *plot, CLOSINGS]
    return Story(" ".join(_fill(rng.choice(beat), words) for beat in beats), words)


def write_documents(seed: int) -> Iterator[str]:
    """Endless training documents: plain stories, a request followed by its story, chats, and lists said twice.

    The lists teach a young model to copy; without them it forgets, for thousands of steps, who the hero was.
    """
    rng = random.Random(seed)
    writers = (_write_plain_story, _write_request, write_chat, _write_echo)
    while True:
        yield rng.choices(writers, weights=(20, 15, 30, 35))[0](rng)


def write_chat(rng: random.Random) -> str:
    """A conversation as the chat template writes it, without the beginning and the end token of the whole."""
    if rng.random() < 0.08:
        return render_chat(list(rng.choice(SMALL_TALK)))
    story = write_story(rng)
    turns = [_ask(rng, story), story.text]
    if rng.random() < 0.3:
        turns += [_fill(line, story.words) for line in rng.choice(QUESTIONS)]
    return render_chat(turns)


def _write_plain_story(rng: random.Random) -> str:
    return write_story(rng).text


def _write_request(rng: random.Random) -> str:
    story = write_story(rng)
    return f"{_ask(rng, story)}\n\n{story.text}"


def _write_echo(rng: random.Random) -> str:
    words = rng.sample([*HE_NAMES, *SHE_NAMES, *FRIENDS, *HEROES], rng.randint(4, 16))
    said = ", ".join(words) + "."
    request = rng.choice(ECHO_REQUESTS).format(list=said)
    return render_chat([request, said]) if rng.random() < 0.5 else f"{request}\n\n{said}"


def render_chat(turns: list[str]) -> str:
    """User and assistant in turn: `<|user|>…</s><|assistant|>…</s>…`, the last end token left to the caller."""
    marks = list(ROLES.values())
    return "</s>".join(f"{marks[idx % 2]}{turn}" for idx, turn in enumerate(turns))


def draw_words(rng: random.Random) -> dict[str, str]:
    """The cast and the props of one story, keyed by template name."""
    hero, trait = rng.choice(HEROES), rng.choice(list(TRAITS))
    is_she = hero in ONLY_SHE or (hero not in ONLY_HE and rng.random() < 0.5)
    name = rng.choice(SHE_NAMES if is_she else HE_NAMES)
    he, him, his = ("she", "her", "her") if is_she else ("he", "him", "his")
    words = {
        "hero": hero,
        "name": name,
        "a_trait": f"an {trait}" if trait[0] in "aeiou" else f"a {trait}",
        "friend": rng.choice([friend for friend in FRIENDS if friend != hero]),
        "friend_name": rng.choice([other for other in HE_NAMES + SHE_NAMES if other != name]),
        "place": rng.choice(PLACES),
        "home": rng.choice(HOMES),
        "treasure": rng.choice(TREASURES),
        "food": rng.choice(FOODS),
        "colour": rng.choice(COLOURS),
        **{"he": he, "him": him, "his": his, "He": he.capitalize(), "His": his.capitalize()},
    }
    beat, fame = TRAITS[trait]
    return words | {"trait_beat": _fill(beat, words), "fame": _fill(fame, words)}


def _choose_plot(rng: random.Random, words: dict[str, str]) -> str:
    # A dragon is no danger to a dragon; knights meet one more often than others.
    if words["hero"] == "knight" and rng.random() < 0.4:
        return "dragon"
    return rng.choice([plot for plot in PLOTS if plot != "dragon" or words["hero"] != "dragon"])


def _ask(rng: random.Random, story: Story) -> str:
    request = _fill(rng.choice(REQUESTS), story.words)
    return request if rng.random() < 0.9 else request.rstrip(".?")


def _fill(template: str, words: dict[str, str]) -> str:
    text = template.format(**words)
    return text.replace(" a owl", " an owl").replace("A owl", "An owl")

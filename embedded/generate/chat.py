"""Small talk, small facts and short texts to read: what a user may say that no entry fits, with an answer."""

from embedded.generate import words
from embedded.generate.phrases import family, shuffled
from embedded.generate.values import Source
from embedded.generate.words import templates

# Question and answer; every fifth pair is held out.
PAIRS = (
    ("Hello!", "Hello! How can I help?"),
    ("How are you?", "I am fine, thank you."),
    ("Who are you?", "I am a small assistant."),
    ("Thanks a lot.", "You are welcome."),
    ("What color is the sky?", "The sky is blue."),
    ("Good morning.", "Good morning!"),
    ("How many legs has a spider?", "A spider has eight legs."),
    ("Is ice cold?", "Yes, ice is cold."),
    ("Tell me a joke.", "Why did the hen cross the road? To reach the other side."),
    ("What do bees make?", "Bees make honey."),
    ("Do fish fly?", "No, fish swim."),
    ("What is the opposite of hot?", "The opposite of hot is cold."),
    ("Goodbye.", "Goodbye!"),
    ("How many days has a week?", "A week has seven days."),
    ("Which animal barks?", "A dog barks."),
    ("Who wrote Hamlet?", "Shakespeare wrote it."),
    ("What is water made of?", "Hydrogen and oxygen."),
    ("Nice to meet you.", "Nice to meet you too."),
    ("Is the moon bigger than the sun?", "No, the sun is bigger."),
    ("What do cows drink?", "Cows drink water."),
    ("Are you a robot?", "I am a program."),
    ("What is the largest ocean?", "The Pacific is the largest."),
    ("I am tired.", "Then take a rest."),
    ("Why is grass green?", "Because of chlorophyll."),
    ("How many months has a year?", "A year has twelve months."),
    ("Do you like music?", "I like it when people enjoy it."),
    ("What comes after Monday?", "Tuesday comes after Monday."),
    ("I feel great today.", "I am glad to hear that."),
    ("Can pigs fly?", "No, they cannot."),
    ("Where do penguins live?", "In the cold south."),
    ("What is a poem?", "A short text with rhythm."),
    ("Say something nice.", "You are doing well."),
    ("Good night.", "Sleep well."),
    ("Is fire hot?", "Yes, it is very hot."),
    ("How do birds fly?", "They beat their wings."),
    ("What is bread made from?", "From flour and water."),
    ("I lost my keys.", "I am sorry to hear that."),
    ("What is the first letter?", "It is A."),
    ("What melts in the sun?", "Ice melts in the sun."),
    ("Why do people sleep?", "To rest body and mind."),
    ("Tell me about yourself.", "I am a small assistant that answers briefly."),
    ("Which is heavier, a car or a cat?", "A car is heavier."),
    ("What do you think about winter?", "It is cold but pretty."),
    ("My name is hard to spell.", "Many names are."),
    ("Do trees have leaves?", "Yes, most of them."),
    ("What sound does a cat make?", "A cat says meow."),
    ("Is glass hard?", "Yes, and it breaks."),
    ("What is a triangle?", "A shape with three sides."),
    ("I had soup for lunch.", "That sounds tasty."),
    ("What is half of ten?", "Half of ten is five."),
    ("Are lemons sweet?", "No, lemons are sour."),
    ("What do we breathe?", "We breathe air."),
    ("Have a nice day.", "You too!"),
    ("What is snow?", "Frozen water from clouds."),
    ("Who are your friends?", "Everyone who talks to me."),
    ("Where does the sun rise?", "In the east."),
    ("What is the meaning of life?", "People have many answers."),
    ("I like you.", "Thank you!"),
    ("How old is the earth?", "About four billion years."),
    ("Do plants need light?", "Yes, plants need light."),
)
# {x} and {y} are words; the answer repeats one of them, so it can be given without knowing the world.
MADE_PAIRS = (
    ("Do you like {x}?", "Yes, {x} is nice."),
    ("What do you think of {x}?", "{x} is interesting."),
    ("I love {x}.", "It is good that you love {x}."),
    ("Which is better, {x} or {y}?", "Both are fine, but I would take {x}."),
    ("Is {x} fun?", "Many people enjoy {x}."),
    ("Why do people like {x}?", "Because {x} makes them happy."),
    ("Tell me about {x}.", "{x} is something that many people know."),
    ("My friend {n} hates {x}.", "Maybe {n} will like {y} more."),
    ("Who is {n}?", "I do not know {n}."),
    ("How do I spell {x}?", "You spell it {x}."),
    ("Have you ever been to {c}?", "No, but {c} must be nice."),
    ("I come from {c}.", "Then greet {c} from me."),
    ("Is {c} a big place?", "I think {c} is quite big."),
    ("{n} says hello.", "Greet {n} from me."),
    ("I am reading about {x}.", "I hope that {x} is a good read."),
    ("Write a line about {x}.", "{x} in the morning, {x} in the night."),
    ("Does {n} like {x}?", "You should ask {n}."),
    ("Yesterday I saw {x} in {c}.", "{c} is full of surprises."),
    ("Can {x} be dangerous?", "Some say that {x} can be."),
    ("I dreamt of {x}.", "What a dream, {x}!"),
    ("What rhymes with {x}?", "I cannot think of a rhyme for {x}."),
    ("{n} and I talk about {x} all day.", "You and {n} have fun."),
    ("Should I learn {x}?", "Yes, {x} is worth it."),
)
# Questions and remarks about something, by frame, and answers that need no knowledge.
FRAMES = shuffled(
    family(
        "what is |who needs |why do people like |do you know |have you heard of |what do you think of |do you enjoy |"
        "how does one explain |can you imagine |is it true that people love |who invented |when did people begin with |"
        "what does one do with |which word rhymes with |how would you describe |is there a story about |"
        "why is there no |what do children say about |should I worry about |how much do you know about ",
        "{x}|{x} and {y}|{x} in {c}",
        "?| today?| these days?|, {n}?",
    ),
    family(
        "I like |I dreamt of |my friend {n} talks about |we laughed about |I never understood |people say much about |"
        "{n} wrote a book on |I was thinking about |yesterday I heard about |nobody in {c} knows |I miss |"
        "my sister is afraid of ",
        "{x}|{x} and {y}|{x} in {c}",
        ".|!| today.| a lot.",
    ),
)
FRAME_ANSWERS = (
    "I know little about {x}.",
    "Some people like {x}.",
    "That depends on {x}.",
    "{x} is a matter of taste.",
    "I have no opinion on {x}.",
    "There is much to say about {x}.",
    "Good that you mention {x}.",
    "Many have asked that about {x}.",
    "I like to hear about {x}.",
    "Nobody knows all about {x}.",
)
# A statement and the question about one of its three facts, by index into (name, place, thing, number).
STORIES = (
    (
        "{0} lives in {1}, likes {2} and is {3} years old.",
        ("Who lives there?", "Where is the home?", "What is liked?", "What age?"),
    ),
    (
        "In {1}, {0} bought {3} pieces of {2}.",
        ("Who bought them?", "Where was it?", "What was bought?", "How many pieces?"),
    ),
    (
        "There were {3} people in {1} to hear {0} talk about {2}.",
        ("Who talked?", "Where was the talk?", "What was it about?", "How many people came?"),
    ),
    (
        "{0} sent a letter about {2} to {1} for {3} coins.",
        ("Who sent it?", "Where did it go?", "What was it about?", "How much was it?"),
    ),
    (
        "Room {3} in {1} belongs to {0}, who teaches {2}.",
        ("Whose room is it?", "In which place?", "What is taught?", "Which room?"),
    ),
    (
        "The {2} of {0} costs {3} in {1}.",
        ("Who owns it?", "Where is it sold?", "What is sold?", "What does it cost?"),
    ),
    (
        "{0} drove {3} miles to {1} for {2}.",
        ("Who drove?", "Where to?", "What for?", "How many miles?"),
    ),
    (
        "After {3} days in {1}, {0} knew all about {2}.",
        ("Who learned?", "Where?", "What was learned?", "How many days?"),
    ),
    (
        "{3} boxes of {2} stand in {1}; {0} counts them.",
        ("Who counts?", "Where are they?", "What is in them?", "How many boxes?"),
    ),
    ("{0} of {1} won prize {3} for {2}.", ("Who won?", "From where?", "What for?", "Which prize?")),
)


def _thing(source: Source) -> str:
    return source.word(source.pick((words.NOUNS, words.TOPICS, words.PRODUCTS))).replace("_", " ")


def small_talk(source: Source) -> tuple[str, str]:
    """A remark or question that asks for no action, and a short answer."""
    style = source.rng.random()
    if style < 0.25:
        return source.pick(templates(PAIRS, source.held))
    slots = {
        "x": _thing(source),
        "y": _thing(source),
        "n": source.word(words.NAMES).capitalize(),
        "c": source.word(words.CITIES).capitalize(),
    }
    if style < 0.6:
        ask = source.wording(FRAMES).format(**slots)
        return ask[:1].upper() + ask[1:], source.answer(FRAME_ANSWERS).format(**slots)
    question, answer = source.pick(templates(MADE_PAIRS, source.held))
    return question.format(**slots), answer.format(**slots)


def story(source: Source) -> tuple[str, list[tuple[str, str]]]:
    """A short text and the questions about it, each with its answer."""
    text, asks = source.pick(templates(STORIES, source.held))
    name, place = source.word(words.NAMES).capitalize(), source.word(words.CITIES).capitalize()
    facts = (name, place, _thing(source), source.digits(1, 3))
    questions = [(ask, f"{fact}.") for ask, fact in zip(asks, facts, strict=True)]
    source.rng.shuffle(questions)
    return text.format(*facts), questions[: source.rng.randint(1, 3)]

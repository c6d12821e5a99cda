"""The vocabulary: plain lists of English words and names, and the syllables of made-up ones.

Separate from the grammar so that the lists can grow without touching it. Every word and every value belongs to exactly one
side of the split, which a checksum decides, so that training and held-out rows of the grammar share no content word.
"""

from functools import cache
from typing import TypeVar
from zlib import crc32

from embedded.generate.domains import NOUNS as NOUNS
from embedded.generate.domains import VERBS as VERBS

Item = TypeVar("Item")

# One word of the lists in this many is held out, one other value, and one sentence template.
HELD_WORDS, HELD_VALUES, HELD_TEMPLATES = 3, 6, 5

ADJECTIVES = tuple(
    """new old quick slow small large red green blue warm cold quiet loud early late cheap fancy local remote public
    private shared hidden broken spare extra daily weekly monthly urgent formal casual simple complex short long
    double single final first second third main minor bright dark fresh dry wet soft hard sweet sour round square
    annual blank custom digital empty global heavy light modern rural urban wooden yellow""".split()
)
# Verbs of two words.
PHRASAL = tuple(
    """turn_on turn_off turn_up turn_down switch_on switch_off look_up look_for search_for set_up pick_up put_away put_on
    write_down sign_up check_in check_out log_in fill_in hand_in send_back give_back call_off call_back ask_for pay_for
    shut_down start_up plug_in take_out bring_back clean_up wrap_up print_out""".split()
)
STREETS = tuple("Street Road Lane Avenue Square Way Close Drive Hill Court Alley Row".split())
NAMES = tuple(
    """Anna Ben Carla David Elena Felix Greta Hugo Irene Jonas Karin Liam Maria Nils Olga Paul Quentin Rosa Simon Tara
    Ulrich Vera Walter Xenia Yusuf Zoe Adam Bianca Cyril Daria Emil Fatima Gustav Hanna Igor Julia Kofi Laura Marco Nadia
    Oscar Petra Rahul Sonja Thomas Ursula Viktor Wanda Yara Zoltan Aisha Boris Clara Diego Esther Farid Gloria Henrik
    Ingrid Jasper Katya Leon Mei Nora Otto Priya Ravi Sven Tina Umar Vikram Willa Ximena Yoko Zane Amir Brigit Chen
    Dana Erik Fiona Goran Hilda Ivan Jia Kwame Lena Milo Noor Olaf Pia Rene Selma Tariq""".split()
)
SURNAMES = tuple(
    """Becker Costa Duval Eriksen Fischer Garcia Hansen Ivanov Jensen Kowalski Larsen Moreau Novak Okafor Petrov
    Quist Rossi Schmidt Tanaka Ueda Vargas Weber Xu Yilmaz Zhang Adler Bauer Cohen Diaz Egger Farkas Gruber Holm Iqbal
    Jung Klein Lopez Mendes Nagy Olsen Park Reyes Singh Torres Urban Vogel Wolff Young Zimmer Brandt Clarke Dunn Ellis
    Foster Grant Hughes Ibsen Joyce Khan Lindt Meyer North""".split()
)
CITIES = tuple(
    """Oslo Paris Lisbon Madrid Vienna Prague Berlin Rome Athens Dublin London Warsaw Budapest Zurich Geneva Brussels
    Helsinki Stockholm Riga Vilnius Tallinn Sofia Zagreb Belgrade Tirana Ankara Cairo Tunis Lagos Nairobi Accra Dakar
    Kampala Lusaka Harare Pretoria Delhi Mumbai Lahore Dhaka Colombo Bangkok Hanoi Manila Jakarta Tokyo Osaka Kyoto
    Seoul Beijing Shanghai Sydney Perth Auckland Toronto Montreal Boston Chicago Denver Dallas Austin Seattle Miami
    Lima Bogota Quito Santiago Havana Kingston Porto Seville Valencia Milan Turin Naples Munich Hamburg Cologne Lyon
    Nice Bergen Malmo Gdansk Krakow Brno Graz Basel Ghent""".split()
)
PRODUCTS = tuple(
    """apples bananas bread butter cheese coffee eggs flour honey jam ketchup lemons milk noodles onions pasta rice
    salt sugar tea vinegar yogurt batteries candles envelopes folders gloves hammers ink jars keys lamps markers nails
    paper rulers scissors tape umbrellas vases wires bolts bricks chairs desks fans hoses mats mugs pans plates pots
    shelves socks spoons towels wallets sponges buckets brooms ladders helmets pencils notebooks stamps""".split()
)
TOPICS = tuple(
    """gardening history astronomy chess cooking physics music painting sailing poetry robotics travel biology economics
    football geology hiking journalism knitting law medicine nutrition opera philosophy quilting rowing sculpture tennis
    urbanism volcanoes weaving yoga zoology archery ballet carpentry drama energy fashion glaciers health insects jazz
    karate lighthouses magnets nature oceans pottery rivers surfing theatre vaccines whales""".split()
)
WEEKDAYS = tuple(
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday tomorrow today tonight".split()
)
MONTHS = tuple(
    "January February March April May June July August September October November December".split()
)
OPTIONS = tuple(
    """small medium large red green blue yellow black white low high normal urgent fast slow cheap standard premium
    basic advanced morning noon evening night lunch dinner breakfast celsius fahrenheit metric imperial aisle window
    economy business first one_way round_trip daily weekly monthly yearly cash card transfer email phone post public
    private draft final open closed left right north south east west up down wool cotton silk linen oak pine steel glass
    vegan spicy mild sweet salty jazz rock pop folk easy hard beginner expert pdf csv png html short long soft firm
    hot cold iced summer winter spring autumn male female child adult senior student""".split()
)
FLAGS = tuple(
    """parking insurance wifi express delivery wrapping balcony heating towels subtitles captions music alerts
    notifications backup encryption tracking signature assembly cleaning pets smoking catering transport guide audio
    shade refills receipt lights recording""".split()
)
DOMAINS = tuple(
    "mail post inbox office shop school north blue river data works cloud garden studio".split()
)
ENDINGS = tuple("com org net io de fr eu info".split())

ONSETS = tuple(
    """b c d f g h j k l m n p r s t v w z b d f g k l m n p r s t br ch cl dr fl gr pl qu sh sk sl st th tr y""".split()
)
VOWELS = tuple("a e i o u a e i o u a e i o ai ee oo ou".split())
CODAS = (*("",) * 14, *"ck d g l m n n nd nk p r rn s st t x".split())
# Every word of the lists in lower case, to make new words of.
ALL = tuple(
    dict.fromkeys(
        part
        for words in (
            ADJECTIVES,
            NAMES,
            SURNAMES,
            CITIES,
            PRODUCTS,
            TOPICS,
            OPTIONS,
            FLAGS,
            NOUNS,
            VERBS,
        )
        for word in words
        for part in word.lower().split("_")
        if len(part) > 2
    )
)


@cache
def side(text: str) -> bool:
    """True where a value (a number, a date, an invented word) belongs to the held-out side."""
    return crc32(text.lower().encode()) % HELD_VALUES == 0


@cache
def mine(words: tuple[str, ...], held: bool) -> tuple[str, ...]:
    """The words of one side; may be none where the list is short."""
    return tuple(
        word
        for word in dict.fromkeys(words)
        if (crc32(word.lower().encode()) % HELD_WORDS == 0) == held
    )


@cache
def templates(texts: tuple[Item | None, ...], held: bool) -> tuple[Item, ...]:
    """The sentence templates of one side: every fifth place is held out, so that each list has some on both sides."""
    last = HELD_TEMPLATES - 1
    return tuple(
        text
        for i, text in enumerate(texts)
        if text is not None and (i % HELD_TEMPLATES == last) == held
    )

"""Tools that people know, and how people ask for them: "Wake me at 7" names neither a tool nor a field.

The grammar of `phrases.py` always repeats a description; these requests do not, and the base has to have met such
language before a fine-tune can rely on it. No held-out tool is from here: those come from the grammar alone.
An idiom's slots {0}, {1}, {2} are the values of the fields in their order.
"""

from dataclasses import dataclass
from random import Random

from embedded.generate import words
from embedded.generate.phrases import family, shuffled
from embedded.generate.values import KINDS, Field, Kind, Source, compound

LANGUAGES = tuple(
    "French German Spanish Italian Dutch Polish Greek Turkish Arabic Hindi Swedish Danish Czech".split()
)
CURRENCIES = tuple(
    "euros dollars pounds yen francs rupees pesos crowns lira USD EUR GBP JPY CHF".split()
)
COUNTRIES = tuple(
    """France Germany Spain Italy Greece Turkey Egypt Kenya Ghana India Nepal Japan China Brazil Chile Peru Mexico Canada
    Norway Sweden Poland Ireland Portugal Morocco Vietnam Iceland""".split()
)
GENRES = tuple("jazz rock pop folk blues soul metal techno opera swing reggae".split())
DISHES = tuple(
    "pizza pasta soup salad curry sushi tacos pancakes burgers noodles risotto stew omelette lasagne".split()
)
COMPANIES = tuple(
    "Apple Tesla Nvidia Siemens Toyota Nestle Shell Bayer Sony Intel Adobe Philips Volvo Nokia".split()
)
ROOMS = tuple("kitchen bedroom bathroom hallway garage office garden attic cellar nursery".split())
UNITS = tuple(
    "miles kilometers meters feet inches yards kilograms grams ounces tons liters gallons cups".split()
)


BARE = shuffled(family("|just |please |only |maybe ", "{v}|for {v}"))


def _listed(items: tuple[str, ...], compounds: bool = False) -> Kind:
    """A kind whose values are the words of a list, with `compounds` now and then two words."""
    proper = items[0][0].isupper()

    def draw(source: Source) -> str:
        word = source.word(items)
        return word.capitalize() if proper else compound(source, word) if compounds else word

    return Kind((), "string", draw, BARE)


def _iso_date(source: Source) -> str:
    def draw() -> str:
        return f"20{source.rng.randint(10, 45)}-{source.rng.randint(1, 12):02d}-{source.rng.randint(1, 28):02d}"

    return source.on_side(draw)


def _day(source: Source) -> str:
    """A date that stands after "on": no tomorrow."""
    while True:
        value = str(KINDS["date"].draw(source))
        if value not in ("today", "tomorrow", "tonight"):
            return value


LISTS = {
    "language": _listed(LANGUAGES),
    "currency": _listed(CURRENCIES),
    "country": _listed(COUNTRIES),
    "genre": _listed(GENRES),
    "dish": _listed(DISHES, compounds=True),
    "company": _listed(COMPANIES),
    "room": _listed(ROOMS),
    "unit": _listed(UNITS),
    "topic": _listed(words.TOPICS, compounds=True),
    "iso": Kind((), "string", _iso_date, KINDS["date"].phrases),
    "day": Kind((), "string", _day, KINDS["date"].phrases),
    "few": Kind((), "integer", lambda source: int(source.digits(1, 2)), KINDS["count"].phrases),
}


@dataclass(frozen=True)
class Everyday:
    """A tool of daily life: its usual names, verb, noun and tails of the description, fields and idioms.

    A field is (names, kind of value) or (names, options).
    """

    names: tuple[str, ...]
    verb: str
    noun: str
    tails: tuple[str, ...]
    fields: tuple[tuple[tuple[str, ...], str | tuple[str, ...]], ...]
    idioms: tuple[str, ...]

    def new_fields(self, source: Source) -> tuple[Field, ...]:
        return tuple(_field(source, names, kind) for names, kind in self.fields)


def _field(source: Source, names: tuple[str, ...], kind: str | tuple[str, ...]) -> Field:
    name = source.pick(names)
    if isinstance(kind, str):
        found = LISTS.get(kind) or KINDS[kind]
        return Field(name, found, found.type, known=False)
    return Field(
        name,
        KINDS["option"],
        tuple(source.rng.sample(kind, min(len(kind), source.rng.randint(2, 4)))),
        False,
    )


def _item(
    names: str, action: str, tails: str, fields: dict[str, str | tuple[str, ...]], idioms: str
) -> Everyday:
    verb, _, noun = action.partition(" ")
    texts = [line.strip() for line in idioms.strip().splitlines()]
    Random(len(texts)).shuffle(texts)
    return Everyday(
        tuple(names.split()),
        verb,
        noun,
        tuple(tails.split("|")),
        tuple((tuple(key.split()), kind) for key, kind in fields.items()),
        tuple(texts),
    )


ITEMS = (
    _item(
        "get_weather weather_forecast check_weather forecast weather",
        "get the weather",
        "| for a city| at a place",
        {"city location place town": "city"},
        """
          what's the weather like in {0}
          how is the weather in {0}
          is it raining in {0}
          will it rain in {0}
          do I need an umbrella in {0}
          is it cold in {0} right now
          tell me if it snows in {0}
          how warm is it in {0}
          should I take a coat to {0}
          is the sun shining in {0}
          what is it like outside in {0}
          any storms near {0}
          I'm in {0}, do I need a jacket
          weather for {0}
          we are going to {0}, will it be sunny""",
    ),
    _item(
        "forecast_weather get_forecast weather_on_day day_forecast",
        "forecast the weather",
        "| for a day| in a city",
        {"city location place": "city", "date day when": "date"},
        """
          what will the weather be in {0} {1}
          will it rain in {0} {1}
          do I need an umbrella in {0} {1}
          how cold will {0} be {1}
          for {1}, will {0} be sunny
          I'm going to {0} {1}, what should I wear
          I'll be in {0} {1}, will it be warm
          any snow in {0} {1}
          what does the sky do in {0} {1}
          for {1}, how hot does it get in {0}""",
    ),
    _item(
        "multiply multiply_numbers times product_of",
        "multiply two numbers",
        "",
        {"a first x left factor": "amount", "b second y right other": "amount"},
        """
          what is {0} times {1}
          what's {0} times {1}
          how much is {0} times {1}
          {0} times {1}
          {0} x {1}
          what do I get from {0} times {1}
          multiply {0} by {1}
          multiply {0} with {1}
          the product of {0} and {1}
          calculate {0} times {1}
          {0} * {1}
          can you work out {0} times {1}
          what does {0} multiplied by {1} give""",
    ),
    _item(
        "add add_numbers sum sum_two plus",
        "add two numbers",
        "",
        {"a first x left": "amount", "b second y right other": "amount"},
        """
          what is {0} plus {1}
          what's {0} plus {1}
          how much is {0} plus {1}
          {0} plus {1}
          {0} + {1}
          add {0} and {1}
          add {0} to {1}
          the sum of {0} and {1}
          calculate {0} plus {1}
          what do {0} and {1} make together
          {0} and {1} is how much""",
    ),
    _item(
        "subtract minus subtract_numbers difference",
        "subtract a number",
        "| from another",
        {"a first x from_number": "amount", "b second y less": "amount"},
        """
          what is {0} minus {1}
          {0} minus {1}
          {0} - {1}
          how much is {0} minus {1}
          take {1} away from {0}
          subtract {1} from {0}
          what is left of {0} without {1}
          what's {0} less {1}
          calculate {0} minus {1}
          I have {0} and pay {1}, what is left""",
    ),
    _item(
        "divide divide_numbers quotient split_evenly",
        "divide a number",
        "| by another",
        {"a dividend first total": "amount", "b divisor second parts": "amount"},
        """
          what is {0} divided by {1}
          {0} divided by {1}
          {0} / {1}
          how much is {0} over {1}
          divide {0} by {1}
          how often does {1} go into {0}
          split {0} into {1} parts
          what's {0} divided by {1}
          calculate {0} divided by {1}
          share {0} among {1}""",
    ),
    # With the verb and noun of the next: the two are never offered together.
    _item(
        "convert_currency exchange_money currency_converter exchange",
        "convert an amount",
        " of money| to another currency",
        {
            "amount sum value": "amount",
            "from source_currency base": "currency",
            "to target target_currency": "currency",
        },
        """
          how much is {0} {1} in {2}
          what are {0} {1} in {2}
          convert {0} {1} to {2}
          change {0} {1} into {2}
          I have {0} {1}, how many {2} is that
          {0} {1} in {2}
          turn {0} {1} into {2}
          what do I get in {2} for {0} {1}
          exchange {0} {1} for {2}
          {0} {1} makes how many {2}""",
    ),
    _item(
        "convert_units unit_converter convert units",
        "convert an amount",
        " to another unit| between units",
        {
            "value amount number": "amount",
            "from unit from_unit": "unit",
            "to target to_unit": "unit",
        },
        """
          how many {2} are {0} {1}
          how much is {0} {1} in {2}
          what are {0} {1} in {2}
          convert {0} {1} to {2}
          turn {0} {1} into {2}
          {0} {1} in {2}
          I need {0} {1} in {2}
          give me {0} {1} in {2}
          express {0} {1} in {2}
          {0} {1} makes how many {2}""",
    ),
    _item(
        "convert_temperature to_unit temperature_converter",
        "convert a temperature",
        "| to another unit| to a scale",
        {
            "degrees value temperature": "amount",
            "unit to scale target": ("celsius", "fahrenheit", "kelvin"),
        },
        """
          what is {0} degrees in {1}
          how much is {0} degrees in {1}
          convert {0} degrees to {1}
          {0} degrees in {1}
          turn {0} degrees into {1}
          my oven says {0} degrees, what is that in {1}
          give me {0} degrees in {1}
          the recipe says {0} degrees, how hot is that in {1}
          change {0} degrees to {1}
          how warm is {0} in {1}
          express {0} degrees in {1}
          it is {0} degrees here, what would that be in {1}""",
    ),
    _item(
        "get_time current_time time_in clock world_clock",
        "get the time",
        "| in a city| at a place",
        {"city place location zone": "city"},
        """
          what time is it in {0}
          what's the time in {0}
          how late is it in {0}
          tell me the time in {0}
          is it night in {0}
          time in {0} please
          what does the clock say in {0}
          are people awake in {0} now
          I need the local time of {0}
          what hour is it over in {0}""",
    ),
    _item(
        "set_alarm alarm add_alarm wake_up",
        "set an alarm",
        "| for a time",
        {"time at hour when": "time"},
        """
          wake me at {0}
          wake me up at {0}
          I have to get up at {0}
          alarm at {0}
          make sure I'm up by {0}
          don't let me sleep past {0}
          set my alarm for {0}
          I want to wake up at {0}
          get me out of bed at {0}
          please ring at {0}
          I must be awake by {0}""",
    ),
    _item(
        "set_timer timer start_timer countdown",
        "set a timer",
        "| for some minutes",
        {"minutes duration length": "count"},
        """
          tell me when {0} minutes are over
          timer for {0} minutes
          count down {0} minutes
          let me know in {0} minutes
          start a timer of {0} minutes
          {0} minutes from now, ring
          my eggs need {0} minutes
          beep in {0} minutes
          give me {0} minutes
          the cake takes {0} minutes""",
    ),
    _item(
        "create_reminder remind add_reminder set_reminder",
        "create a reminder",
        "| for a time",
        {"text about task what": "text", "time when at": "time"},
        """
          remind me at {1} about {0}
          remind me about {0} at {1}
          don't let me forget {0} at {1}
          at {1} I have to think of {0}
          make sure I remember {0} at {1}
          I must not forget {0} at {1}
          ping me at {1} about {0}
          at {1}, tell me about {0}
          set a reminder: {0} at {1}
          nudge me about {0} at {1}""",
    ),
    _item(
        "send_email email mail send_mail write_email",
        "send an email",
        "| to a person",
        {"to recipient address": "email", "subject text body message": "text"},
        """
          write to {0} about {1}
          tell {0} about {1} by mail
          mail {0} about {1}
          email {0} that {1}
          let {0} know about {1}
          drop {0} a line about {1}
          write {0} an email saying {1}
          send {0} a mail about {1}
          shoot {0} an email about {1}
          I have to write to {0} about {1}""",
    ),
    _item(
        "send_message text message send_text sms",
        "send a message",
        "| to a person",
        {"to person contact name": "person", "text message content": "text"},
        """
          tell {0} that {1}
          text {0} about {1}
          message {0}: {1}
          write {0} that {1}
          let {0} know about {1}
          send {0} the words "{1}"
          tell {0} "{1}"
          can you text {0} saying {1}
          say "{1}" to {0}
          drop {0} a note about {1}""",
    ),
    _item(
        "call_contact call phone dial make_call",
        "call a person",
        "| by name",
        {"name contact person": "person"},
        """
          call {0}
          ring {0}
          phone {0} for me
          get {0} on the phone
          I want to talk to {0}
          dial {0}
          can you ring {0}
          I need to speak with {0}
          give {0} a call
          put me through to {0}""",
    ),
    _item(
        "translate translate_text translator translation",
        "translate a text",
        "| into a language",
        {"text phrase sentence": "text", "language to target": "language"},
        """
          how do you say "{0}" in {1}
          what is "{0}" in {1}
          what's {0} in {1}
          say "{0}" in {1}
          I want "{0}" translated into {1}
          translate {0} to {1}
          put "{0}" into {1}
          how would a {1} speaker say "{0}"
          I need "{0}" in {1}
          what does one call {0} in {1}
          the {1} for {0}""",
    ),
    _item(
        "play_music play start_music play_genre",
        "play music",
        "| of a genre",
        {"genre style kind": "genre"},
        """
          play some {0}
          put on some {0}
          I want to hear {0}
          let's listen to {0}
          I'm in the mood for {0}
          start some {0} music
          some {0} please
          how about a bit of {0}
          some {0} would be nice
          fill the room with {0}""",
    ),
    _item(
        "play_song song play_track start_song",
        "play a song",
        "| by an artist",
        {"title song track": "text", "artist singer by": "person"},
        """
          play {0} by {1}
          put on "{0}" by {1}
          I want to hear {0} from {1}
          let's hear "{0}" by {1}
          start the song {0} by {1}
          {1} has a song called "{0}", play it
          can I listen to {0} by {1}
          sing me {0} by {1}
          turn on {0} by {1}
          I love {0} by {1}, put it on""",
    ),
    _item(
        "get_directions directions find_route route navigate",
        "find a route",
        "| from a place to another",
        {"from start origin": "city", "to end destination": "city"},
        """
          how do I get from {0} to {1}
          what's the way from {0} to {1}
          how do we drive from {0} to {1}
          take me from {0} to {1}
          which road goes from {0} to {1}
          I'm in {0} and have to be in {1}
          we want to go from {0} to {1}
          lead me to {1} from {0}
          the fastest way from {0} to {1}
          directions to {1} from {0}""",
    ),
    _item(
        "get_distance distance how_far measure_distance",
        "measure the distance",
        "| between two places",
        {"from start a origin": "city", "to end b destination": "city"},
        """
          how far is it from {0} to {1}
          how far is {1} from {0}
          how many miles are there from {0} to {1}
          what's the distance between {0} and {1}
          is it far from {0} to {1}
          distance {0} to {1}
          how long is the way from {0} to {1}
          how many kilometers between {0} and {1}
          what lies between {0} and {1} in miles
          from {0} to {1}, how far is that""",
    ),
    _item(
        "book_flight flight find_flight search_flights fly",
        "book a flight",
        "| on a day",
        {
            "from origin departure_city": "city",
            "to destination arrival_city": "city",
            "date day when": "day",
        },
        """
          fly me from {0} to {1} on {2}
          I need to fly from {0} to {1} on {2}
          I want to go from {0} to {1} on {2} by plane
          get me on a plane from {0} to {1} on {2}
          on {2} I fly from {0} to {1}
          is there a plane from {0} to {1} on {2}
          a seat from {0} to {1} for {2}
          we leave {0} for {1} on {2} by air
          a ticket from {0} to {1} on {2}
          on {2} I have to be in {1}, I start in {0}""",
    ),
    _item(
        "book_hotel hotel reserve_room find_hotel",
        "book a hotel",
        "| in a city",
        {"city location place": "city", "nights stay length": "few"},
        """
          I need a bed in {0} for {1} nights
          we stay {1} nights in {0}
          find me a place to sleep in {0} for {1} nights
          a room in {0} for {1} nights
          where can we sleep in {0} for {1} nights
          I'm in {0} for {1} nights and need a room
          get us a hotel in {0}, {1} nights
          {1} nights in {0} please
          book me into {0} for {1} nights
          we want to spend {1} nights in {0}""",
    ),
    _item(
        "book_table reserve_table restaurant table_for",
        "book a table",
        "| at a restaurant",
        {"guests people seats party": "few", "time at hour": "time"},
        """
          a table for {0} at {1}
          we are {0} people and want to eat at {1}
          dinner for {0} at {1}
          get us a table at {1}, we are {0}
          {0} of us want to eat at {1}
          I need a table at {1} for {0}
          book lunch for {0} at {1}
          can {0} people eat at {1}
          reserve for {0} at {1}
          seats for {0} at {1}""",
    ),
    _item(
        "order_food order food_delivery get_food",
        "order food",
        "| for delivery",
        {"dish item food meal": "dish", "quantity count number": "few"},
        """
          get me {1} {0}
          I want {1} {0}
          {1} {0} please
          we are hungry, {1} {0}
          bring us {1} {0}
          can I have {1} {0}
          we'd like {1} {0} for dinner
          send over {1} {0}
          let's eat {0}, {1} of them
          I could eat {1} {0} now""",
    ),
    _item(
        "find_recipe recipe get_recipe cook",
        "find a recipe",
        "| for a dish",
        {"dish food meal name": "dish"},
        """
          how do I make {0}
          how do you cook {0}
          I want to cook {0}
          what goes into {0}
          what do I need for {0}
          teach me to make {0}
          how is {0} made
          we want to eat {0} tonight, how do I make it
          I feel like making {0}
          a good way to make {0}""",
    ),
    _item(
        "add_to_list shopping_list add_item buy_list",
        "add something to the shopping list",
        "",
        {"item product thing": "product"},
        """
          we need {0}
          we're out of {0}
          put {0} on the list
          put {0} on my shopping list
          don't forget to buy {0}
          there are no more {0}
          I have to buy {0}
          remember the {0} when shopping
          write down {0} for the shop
          we ran out of {0}""",
    ),
    _item(
        "get_stock stock_price share_price quote",
        "get the price of a share",
        "",
        {"company name stock": "company"},
        """
          how is {0} doing on the market
          what does a share of {0} cost
          how much is {0} stock
          what's {0} trading at
          is {0} up today
          how high is {0} stock now
          what is one share of {0} worth
          where does {0} stand today
          tell me about {0} stock
          how are my {0} shares""",
    ),
    _item(
        "lights switch_lights set_lights light_switch",
        "switch the light",
        "| in a room",
        {"room place where": "room", "state mode power": ("on", "off")},
        """
          lights {1} in the {0}
          turn {1} the lights in the {0}
          turn the {0} lights {1}
          switch {1} the light in the {0}
          in the {0}, lights {1}
          I want the light {1} in the {0}
          make the {0} light go {1}
          the {0} lamp should be {1}
          can the {0} lights be {1}
          switch the {0} lights {1}""",
    ),
    _item(
        "set_heating heating thermostat set_temperature heat",
        "set the heating",
        "| in a room",
        {"room place where": "room", "degrees temperature level": "few"},
        """
          make it {1} degrees in the {0}
          it's cold in the {0}, make it {1} degrees
          heat the {0} to {1}
          warm the {0} up to {1} degrees
          I want {1} degrees in the {0}
          set the {0} to {1} degrees
          the {0} should be at {1} degrees
          {1} degrees in the {0} please
          bring the {0} to {1} degrees
          turn the {0} to {1}""",
    ),
    _item(
        "get_population population count_people inhabitants",
        "get the population",
        "| of a country",
        {"country nation name": "country"},
        """
          how many people live in {0}
          what's the population of {0}
          how big is the population of {0}
          how many live in {0}
          number of people in {0}
          how many inhabitants has {0}
          is {0} a country of many people
          count the people of {0}
          people in {0}, how many
          how populous is {0}""",
    ),
    _item(
        "get_capital capital capital_of find_capital",
        "get the capital",
        "| of a country",
        {"country nation name": "country"},
        """
          what is the capital of {0}
          what's the capital of {0}
          which city is the capital of {0}
          capital of {0}
          where does the government of {0} sit
          name the capital of {0}
          the main city of {0}
          tell me the capital of {0}
          {0} has which capital
          which capital does {0} have""",
    ),
    _item(
        "get_news news headlines search_news",
        "get the news",
        "| about a topic",
        {"topic subject about": "topic"},
        """
          what's new in {0}
          what's happening in {0}
          any news about {0}
          anything new about {0}
          what do the papers say about {0}
          headlines on {0}
          I want to read about {0}
          tell me the latest on {0}
          what is going on in {0}
          catch me up on {0}""",
    ),
    _item(
        "count_days days_between date_difference days_until",
        "count the days",
        "| between two dates",
        {"start from begin first": "iso", "end to until second": "iso"},
        """
          how many days are there from {0} to {1}
          how many days lie between {0} and {1}
          how long is it from {0} to {1}
          days between {0} and {1}
          how many days from {0} until {1}
          from {0} to {1}, how many days is that
          how far apart are {0} and {1}
          we travel from {0} to {1}, how many days is that
          how much time is between {0} and {1}
          I was away from {0} to {1}, how many days was I gone""",
    ),
    _item(
        "track_package track_parcel package_status where_is_parcel",
        "track a package",
        "| by its number",
        {"number code tracking_id id": "code"},
        """
          where is my package {0}
          where's parcel {0}
          has {0} arrived yet
          when does {0} come
          is my parcel {0} on its way
          I'm waiting for {0}, where is it
          my package {0} has not come
          what happened to shipment {0}
          find out where {0} is
          did they ship {0}""",
    ),
    _item(
        "create_event add_event calendar schedule_meeting new_event",
        "create an event",
        "| on a day",
        {"title name subject": "text", "date day on": "day", "time at start": "time"},
        """
          I have {0} on {1} at {2}
          put {0} in my calendar for {1} at {2}
          on {1} at {2} there is {0}
          that is {0} on {1} at {2}
          block {1} at {2} for {0}
          we have {0} on {1} at {2}
          note {0} for {1} at {2}
          my calendar needs {0} on {1} at {2}
          add {0} on {1} at {2}
          plan {0} for {1} at {2}""",
    ),
    _item(
        "take_note note save_note write_note",
        "save a note",
        "",
        {"text content note": "text"},
        """
          write down {0}
          note that {0}
          remember "{0}"
          keep in mind: {0}
          make a note: {0}
          jot down {0}
          save this: {0}
          write "{0}" down for me
          note to self: {0}
          I want to keep "{0}" """,
    ),
    _item(
        "random_number dice pick_number roll",
        "pick a random number",
        "| in a range",
        {"low min from": "count", "high max to": "count"},
        """
          pick a number from {0} to {1}
          give me a number between {0} and {1}
          any number from {0} to {1}
          roll something between {0} and {1}
          a random number from {0} to {1}
          think of a number between {0} and {1}
          choose a number from {0} to {1}
          between {0} and {1}, which number
          draw a number from {0} to {1}
          say a number between {0} and {1}""",
    ),
    _item(
        "tip calculate_tip tip_for add_tip",
        "calculate a tip",
        "| for a bill",
        {"bill amount total": "amount", "percent rate share": "few"},
        """
          what is {1} percent tip on {0}
          the bill is {0}, what's a {1} percent tip
          how much do I tip on {0} at {1} percent
          {1} percent of {0} as a tip
          tip {1} percent on {0}
          I paid {0} and want to tip {1} percent
          dinner was {0}, add {1} percent
          our bill says {0}, we tip {1} percent
          how much is a tip of {1} percent for {0}
          a tip of {1} percent on {0}, how much is that""",
    ),
    _item(
        "percentage percent_of calculate_percent part_of",
        "calculate a percentage",
        "| of a number",
        {"percent rate p": "few", "number value of base": "amount"},
        """
          what is {0} percent of {1}
          how much is {0} percent of {1}
          {0} percent of {1}
          {0}% of {1}
          what's {0}% of {1}
          calculate {0} percent of {1}
          I need {0} percent of {1}
          take {0} percent of {1}
          give me {0} percent of {1}
          how much is {0}% of {1}""",
    ),
    _item(
        "square_root root sqrt",
        "take the square root",
        "| of a number",
        {"number value x": "amount"},
        """
          what is the square root of {0}
          the root of {0}
          square root of {0}
          what's the root of {0}
          which number squared is {0}
          sqrt of {0}
          what times itself is {0}
          how much is the square root of {0}
          find the root of {0}
          give me the square root of {0}""",
    ),
)

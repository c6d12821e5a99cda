"""Fields of life: which verbs go with which nouns, and what one says about them.

Separate from the other word lists so that a generated tool makes sense: one pays an invoice and feeds a dog.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Domain:
    """Verbs and nouns that may be combined, and the kinds of values (see `values.KINDS`) that are usual there."""

    verbs: tuple[str, ...]
    nouns: tuple[str, ...]
    kinds: tuple[str, ...]


def _domain(verbs: str, nouns: str, kinds: str) -> Domain:
    return Domain(tuple(verbs.split()), tuple(nouns.split()), tuple(kinds.split()))


DOMAINS = (
    _domain(
        "book reserve cancel find search compare confirm check plan change swap extend shorten",
        """flight hotel train bus ferry taxi cabin trip tour ticket seat visit hike vacation holiday car van bicycle boat
        tent room truck swim""",
        "city date count person option amount time",
    ),
    _domain(
        "schedule move cancel plan organize confirm join leave prepare host invite set_up follow",
        """meeting call appointment class lesson course exam lecture seminar workshop interview event party wedding concert
        festival match race game""",
        "date time person city count email subject",
    ),
    _domain(
        "play pause resume stop record download share rate rank describe review tag find",
        "movie film song album playlist video quiz puzzle poster photo picture story novel poem book headline news painting",
        "text subject person option count",
    ),
    _domain(
        """open close create edit copy rename print scan review approve reject sign archive export import merge split format
        translate summarize highlight draft publish delete lock""",
        """letter message email note memo report article page chapter paragraph document file folder archive backup database
        record entry form survey poll contract spreadsheet slide chart graph statistic""",
        "text email person option code flag",
    ),
    _domain(
        "pay charge refund transfer calculate estimate check renew extend trade predict verify",
        """invoice bill receipt payment loan budget account card coupon discount subscription membership policy claim license
        passport visa permit salary exchange_rate stock_price budget_plan currency deposit""",
        "amount code person date option count",
    ),
    _domain(
        "get check show predict measure track compare look_up locate monitor",
        """weather forecast temperature humidity wind rainfall sunrise tide moon star planet map route address road bridge
        distance speed weight height volume""",
        "city date time option",
    ),
    _domain(
        "turn_on turn_off dim brighten set adjust clean repair install test lock unlock open close paint heat cool",
        """lamp light heater fan window door gate fence roof wall floor carpet curtain sofa chair bed mirror clock alarm
        timer oven fridge freezer kettle toaster kitchen table desk""",
        "option time count text flag",
    ),
    _domain(
        "order cook bake grill mix serve taste find brew prepare",
        """fruit apple lemon pear berry salad soup pizza pasta sandwich cake bread coffee tea juice recipe meal breakfast
        lunch dinner snack menu""",
        "product option count time city flag amount",
    ),
    _domain(
        "build update reset restore monitor test inspect block enable disable assign report log install remove",
        """task project issue bug branch server website domain password device phone laptop printer scanner camera speaker
        microphone screen keyboard battery charger cable sensor robot drone engine tire brake wheel pump valve filter pipe
        tank""",
        "code text option email date count",
    ),
    _domain(
        "ship deliver collect pack return track send weigh measure pick_up drop_off hire",
        "parcel package box crate pallet shipment container warehouse product item sample shelf delivery",
        "code city date amount product person count",
    ),
    _domain(
        "buy sell rent lend borrow trade reserve replace wash hang order",
        """tool hammer drill saw ladder rope jacket coat shirt dress shoe hat glove scarf bag suitcase wallet ring watch
        necklace toy doll kite ball racket guitar piano violin drum flute""",
        "product option count amount date",
    ),
    _domain(
        "book check renew request find log cancel confirm add",
        "vaccine prescription pill bandage blood_test x_ray checkup dentist doctor nurse patient",
        "person date time code count",
    ),
    _domain(
        "hire invite greet call notify remind assign register enroll rank text mail vote",
        "customer employee student teacher driver pilot guest neighbor team group club shift",
        "person email date text code",
    ),
    _domain(
        "find visit show locate rate describe map photograph sketch",
        """library museum gallery theater cinema stadium gym pool sauna bank shop market bakery pharmacy hospital school
        airport station harbor park garden office""",
        "city time date option subject",
    ),
    _domain(
        "translate spell define explain decode encode count sort compress convert",
        "word synonym sentence language translation score ranking title",
        "text option subject",
    ),
    _domain(
        "feed walk train water plant harvest draw weigh donate",
        "dog cat horse parrot rabbit hamster fish lawn tree flower plant seed",
        "time count option person text",
    ),
    _domain(
        "add create list show update delete start restart remind remove shorten",
        "reminder calendar alarm timer task list schedule plan goal habit",
        "text date time option count",
    ),
)
VERBS = tuple(dict.fromkeys(verb for domain in DOMAINS for verb in domain.verbs))
NOUNS = tuple(dict.fromkeys(noun for domain in DOMAINS for noun in domain.nouns))

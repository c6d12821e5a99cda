"""The sentence templates: how a request opens, names its action and its values, and how an answer is worded.

Most lists are families: every combination of a few columns of parts, without those that are no English. Every fifth
template is held out (see `words.templates`), in an order shuffled by checksum, so that a held-out template is a new
combination and not a new word.
Slots: {a} the action, {n} its noun, {f} a field's name, {v} a value, {e} an entry's name.
"""

import re
from itertools import product
from zlib import crc32

Templates = tuple[str | None, ...]


def family(*columns: str) -> tuple[str, ...]:
    """Every way to join one part of each column, the parts of a column being divided by "|"."""
    return tuple("".join(parts) for parts in product(*(column.split("|") for column in columns)))


def shuffled(*families: tuple[str, ...], broken: str = "(?!)") -> Templates:
    """The templates of several families, each once, in the order of their checksums.

    One in which the expression `broken` finds something is None: what is left out must not move the others to the other
    side of the split.
    """
    texts = sorted(
        {text for texts in families for text in texts},
        key=lambda text: (crc32(text.encode()), text),
    )
    return tuple(None if re.search(broken, text) else text for text in texts)


PLURALS = "I|we|they|my friends|my parents|you and I"
SINGULARS = "my boss|my friend|my sister|our team|the client|somebody|a neighbor"
OPENERS = shuffled(
    family(
        "|please |hey, |now |kindly |also, ",
        "can you |could you |would you |will you |can you please |could you kindly |would you please |can we |"
        "may I ask you to |is it possible to |would it be possible to |are you able to |can I ask you to |"
        "would it be fine to |is there a way to |how about we |could we ",
        "{a}",
        "| for me| for us| now",
    ),
    family(
        PLURALS,
        " want to | need to | have to | would like to | must | should | plan to | hope to | intend to | wish to |"
        " decided to | ought to | are asked to | will ",
        "{a}",
    ),
    family(
        SINGULARS,
        " wants to | needs to | has to | would like to | must | should | hopes to | asked me to ",
        "{a}",
    ),
    family(
        "I|we|they",
        " want you to | need you to | would like you to | ask you to | expect you to |'d like you to ",
        "{a}",
        "| now| today",
    ),
    family(
        "|please |just |now |quickly |go ahead and |do me a favour and |make sure to |don't forget to |remember to |"
        "help me |help me to |let's |let us |try to |be so good as to |be so kind as to |kindly |hey, |hello, |"
        "first of all |it's time, ",
        "{a}",
        "| for me| for us| now| today",
    ),
    family(
        "it is time to |it would help me to |it would be great to |it would be nice to |the plan is to |"
        "your job is to |"
        "your task is to |the next step is to |my wish is to |what I need is to |all I want is to |the idea is to |"
        "I am trying to |I was told to |I am here to |I am about to |I hope you can |my request is to |"
        "what we want is to |it is important to |we are going to |I am supposed to |there is a need to ",
        "{a}",
        "| for me| for us",
    ),
    broken=r"^kindly (can|could|would|will|may|is|are|how)|^please (is|are|how|would it)|"
    r"^please (would you please|can you please|could you kindly)|"
    r"^now (is|are|how|would it|may|can we|can I|could we)|( we|^help me|^let's|^let us) {a} for (me|us)|"
    r"^you and I (are asked|ought|plan|intend|hope|wish|decided)|^(I am|we are|I was|it would help me) .*for (me|us)",
)
# Openers that name the noun only: the verb is left to the reader.
NOUN_OPENERS = shuffled(
    family(
        "I need|we need|I want|we want|give me|show me|tell me|get me|I would like|I am after|I'm looking for|"
        "I could use|what is|what about|how is|what's|how about|I'm asking about|this is about|now|can I have|"
        "could I get|may I have|we could use|I'd like|let me have|please get me|it is about|I wonder about",
        " the {n}| a {n}| my {n}| our {n}| this {n}",
        "|, please| now| today",
    ),
    broken=r"^now .* now|^(what|how is|how about|it is about|this is about|I'm asking|I wonder) .*, please|"
    r"^(what is|what's|how is) (a|this) |^tell me (a|this) ",
)
# How a field's name and value are put together.
LABELLED = shuffled(
    family(
        "|the |its |a |my |with |with the |with a |where the |for the |and the |on |at |by ",
        "{f}",
        " |: | = | is | should be | must be | will be | being | of | set to | equal to | as | which is | reads |"
        " would be | shall be | must read |, namely | named | like ",
        "{v}",
    ),
    family(
        "|use |take |taking |with |put |having |enter |write |choose |I chose |I want |using |give |it has |"
        "pick |we take ",
        "{v}",
        " as | for | as the | for the | as its | in the | under | into the | in | to be the | to be its | is the |"
        " goes into | on the | at the ",
        "{f}",
    ),
    family(
        "set |make |put |let |set the |make the |let the |have the |change the |fix the ",
        "{f}",
        " to | be | at | on ",
        "{v}",
    ),
    (
        "({f}: {v})",
        "[{f} {v}]",
        '{f} "{v}"',
        "as {f} use {v}",
        "as the {f} take {v}",
        "for {f} it is {v}",
        "{v} ({f})",
        "for {f} I have {v}",
        "in {f} we have {v}",
        "the {f}? {v}",
        "{f} -> {v}",
        "under {f} write {v}",
    ),
    broken=r"^(a|with|with the|with a|for the|on|at|by) {f} (is|should|must|will|would|shall|reads) |{f} (named|like) |"
    r"^(for the|on|at|by) {f}(,| being| which| set| equal| of| as)|"
    r"^where the {f}( {v}|,|:| =| being| which| set| equal| of| as)|"
    r"^(with )?a {f}(:| {v}| =| as| set| being|,)|.{v} (is the|goes into) |^(?!I |choose|we take).*{v} to be (the|its)|"
    r"^(?!put|enter|write|{v}).*{v} (into|in|into the|in the|under) {f}|{v} (on|at) the |"
    r"^(?!(set|set the|change the) {f} to |(make|make the|let the) {f} be |(fix the|set|set the|have the) {f} at )"
    r"(set|make|put|let|have|change|fix)( the)? {f} (to|be|at|on) ",
)
YES = shuffled(
    family(
        "with |including |plus |and |add |we want |I need |I want |please include |we take |do include |and with ",
        "{f}",
        "| too| as well| please| of course",
    ),
    (
        "{f}: yes",
        "{f} is on",
        "{f} included",
        "{f} on",
        "yes to {f}",
        "{f} turned on",
        "{f} is wanted",
        "{f}: true",
    ),
    broken=r"^(plus|and|including|do include) {f} of course",
)
NO = shuffled(
    family(
        "without |no |but no |but not with |minus |we don't want |I don't need |leave out |and no |skip the |not |"
        "I want no ",
        "{f}",
        "| please| this time| at all| now",
    ),
    (
        "{f}: no",
        "{f} is off",
        "{f} excluded",
        "{f} off",
        "no to {f}",
        "{f} turned off",
        "{f} is unwanted",
        "{f}: false",
    ),
    broken=r"{f} at all|^(minus|skip the|no|not|without|leave out|and no|but no|I want no|but not with) {f} now|"
    r"^not {f} please",
)
JOINTS = (", ", " ", " and ", ", and ", "; ")
CLOSERS = ("",) * 80 + shuffled(
    family(
        " thanks| thank you| many thanks| cheers| please| I thank you| much obliged",
        "| a lot| so much| in advance| for that| again",
    ),
    family(" as soon| as fast| as quickly| as well", " as you can| as possible"),
    family(
        " right away| at once| soon| today| when you can| if you can| if possible| when you have a moment|"
        " now",
        "|, please|, thanks",
    ),
    family(
        " that would be| this is| it is| that is",
        " great| important| urgent| all| nice| very kind| needed",
    ),
    broken=r"^ (cheers|please|much obliged|I thank you) \w|^ many thanks (a lot|so much)|^ thank you a lot|"
    r"^ that would be (important|urgent|all|needed)|^ (this|it) is (great|all|nice|very|needed)|"
    r"^ that is (great|important|urgent|nice|very|needed)",
)
PREFIXES = ("",) * 150 + shuffled(
    family(
        "hi|hello|hey|good morning|good evening|good day|okay|well|right|listen|sorry",
        "| there| again| my friend| then| you| everyone",
        ", |. |! ",
    ),
    family(
        "one more thing|a new job|quick question|next|a small request|here is the next|another thing|a task|"
        "a wish|my question|this time|for today|the job|a short one",
        ": |, | - ",
    ),
    broken=r"^[\w ]+ you[,.!]|^(okay|well|right|listen|sorry) (there|again|everyone|my friend)|"
    r"^(hi|hello|hey|good \w+) then",
)
LEADS = shuffled(
    family(
        "with |given |considering |using |note |knowing ",
        "these facts|the following|this|these details|what follows|some details|my notes",
        ": ",
    ),
    (
        "given ",
        "considering ",
        "using ",
        "note ",
        "details: ",
        "here it goes: ",
        "it is like this: ",
        "facts: ",
        "data: ",
    ),
)
LINKS = shuffled(
    family(
        "|first |two things: |to begin with |to start with |two jobs: |for one thing ",
        "{x}",
        ". Also, |, and |. Then | and then |, afterwards |. After that, |; |. |, next | and also |. Second, |. And |"
        ", plus |. Besides, |. In addition, |, then |; on top of that |. Next, |. Finally, |. When done, |"
        ". Moreover, |"
        "; moreover |. Another thing: |, and after that | and |. Once more: |; secondly ",
        "{y}",
    ),
    (
        "1. {x} 2. {y}",
        "{x} before you {y}",
        "a) {x} b) {y}",
        "1) {x} 2) {y}",
        "please do this: {x}; and this: {y}",
    ),
)

# {w} is the wish: what the request asks for, in its own words.
FITS = "{w}: {e} fits."
NEEDS = "It needs {fields}."
NONE_FITS = "None fits."
UNFIT = "{w}: none fits."
LACKS = "{f} is missing."
ASKS = (
    "What is the {f}?",
    "Which {f} should I use?",
    "Please tell me the {f}.",
    "I still need the {f}.",
    "And the {f}?",
    "Could you give me the {f}?",
    "Which {f} do you want?",
    "What {f} shall I take?",
    "I need to know the {f}.",
    "Kindly add the {f}.",
)
SORRY = (
    "I have nothing for that.",
    "I cannot do that here.",
    "That is not something I can do.",
    "Sorry, nothing here does that.",
    "There is no way for me to do that.",
    "I can't help with that.",
    "Sorry, I can't do that.",
    "That is beyond me.",
    "Nothing on my list does that.",
    "I am afraid I can't do that.",
)
DONE = (
    "Done.",
    "All done.",
    "It is done.",
    "That worked.",
    "Finished.",
    "Okay, done.",
    "Ready.",
    "That is settled.",
    "Good.",
    "Everything went well.",
)
REPORTS = (
    "The {f} is {v}.",
    "{f}: {v}.",
    "You get {f} {v}.",
    "I see {f} {v}.",
    "It says {f} {v}.",
    "Here is the {f}: {v}.",
    "For {f} it gives {v}.",
    "The {f} came out as {v}.",
    "{f} is {v}.",
    "As {f} I read {v}.",
)
FAILED = (
    "That did not work: {v}.",
    "It failed: {v}.",
    "There was a problem: {v}.",
    "I got an error: {v}.",
    "No luck: {v}.",
)
# Fields of a result and the kind of value (see `values.KINDS`) that each holds.
RESULT_KINDS = {
    "status": "text",
    "total": "amount",
    "price": "amount",
    "count": "count",
    "number": "count",
    "value": "amount",
    "code": "code",
    "time": "time",
    "name": "person",
    "place": "city",
    "score": "count",
    "answer": "text",
    "result": "text",
    "state": "option",
    "level": "count",
    "id": "code",
    "temperature": "amount",
    "rate": "amount",
    "duration": "count",
    "date": "date",
}
PROBLEMS = (
    "not found",
    "no connection",
    "access denied",
    "already closed",
    "out of stock",
    "too late",
    "no such place",
    "try again later",
    "limit reached",
    "nothing there",
)

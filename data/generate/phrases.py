"""The sentence templates: how a request opens, names its action and its values, and how an answer is worded.

In a list every fifth template is held out (see `words.templates`). Slots: {a} the action, {n} its noun, {f} a field's
name, {v} a value, {e} an entry's name.
"""

OPENERS = (
    "please {a}", "can you {a}", "could you {a}", "I want to {a}", "would you kindly {a}", "I need to {a}",
    "help me {a}", "I would like to {a}", "{a}", "I have to {a}", "we need to {a}", "let's {a}", "{a} for me",
    "it is time to {a}", "my boss asked me to {a}", "go ahead and {a}", "I'd like you to {a}", "can I ask you to {a}",
    "now {a}", "be so good as to {a}", "we should {a}", "is it possible to {a}", "I am trying to {a}",
    "I was told to {a}", "the plan is to {a}", "hey, {a}", "hi, please {a}", "hello, can you {a}",
    "may I ask you to {a}", "do me a favour and {a}", "somebody has to {a}", "don't forget to {a}", "I must {a}",
    "you should {a}", "your next job is to {a}", "kindly {a}", "quickly {a}", "would it be fine to {a}",
    "they want me to {a}", "what I need is to {a}", "make sure to {a}", "I hope you can {a}", "will you {a}",
    "today I want to {a}", "it would help me a lot to {a}",
)  # fmt: skip
# Openers that name the noun only: the verb is left to the reader.
NOUN_OPENERS = (
    "I need a {n}", "what about the {n}", "what is the {n}", "I want the {n}", "any chance of a {n}",
    "give me the {n}", "show me the {n}", "tell me the {n}", "what's the {n}", "now the {n}", "how is the {n}",
    "I am after a {n}", "a {n}", "I'm asking about the {n}", "my {n}, please", "the {n} please", "I could use a {n}",
    "one {n}", "we want a {n}", "this is about a {n}",
)  # fmt: skip
# How a field's name and value are put together.
LABELLED = (
    "{f} {v}", "the {f} is {v}", "{f}: {v}", "with {f} {v}", "taking {v} as {f}", "with {v} as the {f}", "{f} = {v}",
    "the {f} should be {v}", "set the {f} to {v}", "and let the {f} read {v}", "use {v} for the {f}", "for {f} {v}",
    "where {f} is {v}", "the {f} being {v}", "{v} for {f}", "with the {f} {v}", "as {f} use {v}", "{f} of {v}",
    "its {f} is {v}", "having {v} in {f}", "{v} is the {f}", "a {f} of {v}", "put {v} as {f}", "make the {f} {v}",
    "{v} goes into {f}", "{f} must be {v}", "I chose {v} for {f}", "my {f} is {v}", "{f} equal to {v}",
    "{f}, which is {v}", "the {f} will be {v}", "({f}: {v})", "at {f} {v}", "on {f} {v}", "write {v} under {f}",
    "by {f} {v}", "enter {v} as the {f}", "given {f} {v}", "its {f} being {v}", "{f} stands at {v}",
)  # fmt: skip
YES = ("with {f}", "including {f}", "{f}: yes", "and {f} too", "plus {f}", "{f} is on", "we want {f}", "I need {f}",
       "{f} included", "{f} as well")  # fmt: skip
NO = ("without {f}", "no {f}", "{f}: no", "but not with {f}", "minus {f}", "{f} is off", "we don't want {f}",
      "I don't need {f}", "leave out {f}", "{f} excluded")  # fmt: skip
JOINTS = (", ", " ", " and ", ", and ", "; ")
CLOSERS = ("", "", "", "", "", " thanks", " please", " thank you", " as soon as you can", " many thanks", " if you can",
           " soon", " that would be great", " it's important", " cheers", " right away", " when you have a moment", "",
           " that's all", " much obliged")  # fmt: skip
PREFIXES = (
    "", "", "", "", "", "hi, ", "hello. ", "hey, ", "one more thing: ", "a new job: ", "so, ", "okay, ",
    "good morning. ", "listen, ", "right then, ", "quick question: ", "I'm back. ", "well, ", "sorry, ", "next: ",
)  # fmt: skip
LEADS = ("with these facts: ", "for what follows: ", "given ", "considering ", "in view of ", "here it goes: ", "note ",
         "details: ", "using ", "it is like this: ")  # fmt: skip
LINKS = (
    "{x}. Also, {y}", "{x}, and {y}", "{x}. Then {y}", "{x} and then {y}", "first {x}, afterwards {y}",
    "{x}. After that, {y}", "{x}; {y}", "{x}. {y}", "two things: {x}, and {y}", "{x}, next {y}", "{x} and also {y}",
    "first {x}. Second, {y}", "{x}. And {y}", "1. {x} 2. {y}", "{x} before you {y}", "{x}, plus {y}",
    "{x}. Besides, {y}", "{x}. In addition, {y}", "{x}, then {y}", "{x}; on top of that {y}",
)  # fmt: skip

FITS = "{e} fits."
NEEDS = "It needs {fields}."
NONE_FITS = "None fits."
LACKS = "{f} is missing."
ASKS = (
    "What is the {f}?", "Which {f} should I use?", "Please tell me the {f}.", "I still need the {f}.", "And the {f}?",
    "Could you give me the {f}?", "Which {f} do you want?", "What {f} shall I take?", "I need to know the {f}.",
    "Kindly add the {f}.",
)  # fmt: skip
SORRY = (
    "I have nothing for that.", "I cannot do that here.", "That is not something I can do.",
    "Sorry, nothing here does that.", "There is no way for me to do that.", "I can't help with that.",
    "Sorry, I can't do that.", "That is beyond me.", "Nothing on my list does that.", "I am afraid I can't do that.",
)  # fmt: skip
DONE = (
    "Done.", "All done.", "It is done.", "That worked.", "Finished.", "Okay, done.", "Ready.", "That is settled.",
    "Good.", "Everything went well.",
)  # fmt: skip
REPORTS = (
    "The {f} is {v}.", "{f}: {v}.", "You get {f} {v}.", "I see {f} {v}.", "It says {f} {v}.", "Here is the {f}: {v}.",
    "For {f} it gives {v}.", "The {f} came out as {v}.", "{f} is {v}.", "As {f} I read {v}.",
)  # fmt: skip
FAILED = (
    "That did not work: {v}.", "It failed: {v}.", "There was a problem: {v}.", "I got an error: {v}.",
    "No luck: {v}.",
)  # fmt: skip
# Fields of a result and the kind of value (see `values.KINDS`) that each holds.
RESULT_KINDS = {
    "status": "text", "total": "amount", "price": "amount", "count": "count", "number": "count", "value": "amount",
    "code": "code", "time": "time", "name": "person", "place": "city", "score": "count", "answer": "text",
    "result": "text", "state": "option", "level": "count", "id": "code", "temperature": "amount", "rate": "amount",
    "duration": "count", "date": "date",
}  # fmt: skip
PROBLEMS = (
    "not found", "no connection", "access denied", "already closed", "out of stock", "too late", "no such place",
    "try again later", "limit reached", "nothing there",
)  # fmt: skip

"""The sentence templates: how a request names its action and values, and how an answer is worded.

The texts are in words/phrases.txt. Most lists are all combinations of a few parts, without those
that are not English. Every fifth template is held out (see `words.templates`), in an order
shuffled by checksum, so that a held-out template is a new combination and not a new word.
Slots: {a} the action, {n} its noun, {f} a field's name, {v} a value, {e} an entry's name, {w} the
wish, {x} and {y} requests.
"""

from embedded.generate.lists import entries, shuffled, table

OPENERS = shuffled("phrases", "openers")
NOUN_OPENERS = shuffled("phrases", "noun openers")
LABELLED = shuffled("phrases", "labelled")
YES = shuffled("phrases", "yes")
NO = shuffled("phrases", "no")
JOINTS = (", ", " ", " and ", ", and ", "; ")
# The empty template many times: most requests have no greeting and no closer.
CLOSERS = ("",) * 80 + shuffled("phrases", "closers")
PREFIXES = ("",) * 150 + shuffled("phrases", "prefixes")
LEADS = shuffled("phrases", "leads")
LINKS = shuffled("phrases", "links")

# The plan before a record or a call. One wording each: the fine-tune's rows use the same sentences.
FITS = "{w}: {e} fits."
NEEDS = "It needs {fields}."
NONE_FITS = "None fits."
UNFIT = "{w}: none fits."
LACKS = "{f} is missing."

ASKS = entries("phrases", "asks")
SORRY = entries("phrases", "sorry")
DONE = entries("phrases", "done")
REPORTS = entries("phrases", "reports")
FAILED = entries("phrases", "failed")
PROBLEMS = entries("phrases", "problems")
# Fields of a result and the kind of value (see `values.KINDS`) of each.
RESULT_KINDS = table("phrases", "result kinds")

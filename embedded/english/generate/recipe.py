"""The knobs of the tool documents. A stage that was trained keeps its own; new ones default to
what was done before they existed, so that its documents stay as they were.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """
    styles     files of the corpus
    sizes      numbers of tools on a list, one of which is drawn
    mates      share of string values taken from arguments of like names in all the styles
    listed     share of values that are the ones written beside the tool, before any other draw
    options    an option of an enum keeps its capitals in a call where the message has lost them
    own        share of tools shown exactly as they were written
    bare       a string is passed without the article that it is said with: the lamp, "lamp"
    keyed      the keys of a list tell those of the records
    results    whether tools without hand-written results give back made-up ones
    close      the share of lists of which all tools are near to one another
    more       whether the further lines about tools are used (corpus.More)
    marked     a value that is missing is marked where its argument is listed: "city (missing)"
    schemas    share of lists that show complete JSON schemas
    apart      tools of different styles that share so much of their words do not meet on a list
    tidy       no full stop and no capital where a joined sentence goes on
    talk       files of small talk; `frames` and `joins` likewise
    held       whether the held-out lines of those are meant, for the gate
    turns      weights of the messages: one wish, two, talk, unfit, missing, only a choice or a list
    branches   messages that are made for a list; what has no room in a pack is dropped
    near       share of the requests for a made-up tool that name it by near words, and of its texts
               that are phrases of several words
    """

    styles: tuple[str, ...]
    sizes: tuple[int, ...] = (2, 3, 3, 4, 4, 5, 5, 6, 7, 8)
    mates: float = 0.0
    listed: float = 0.0
    options: bool = False
    own: float = 0.0
    bare: bool = False
    keyed: bool = False
    results: bool = False
    close: float = 0.0
    more: bool = False
    marked: bool = False
    schemas: float = 0.0
    apart: float = 2.0
    tidy: bool = False
    talk: tuple[str, ...] = ("talk",)
    frames: tuple[str, ...] = ("frames",)
    joins: tuple[str, ...] = ("joins",)
    held: bool = False
    turns: tuple[int, ...] = (42, 25, 6, 11, 10, 6)
    branches: int = 14
    near: float = 0.0

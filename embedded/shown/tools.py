"""Three tools that no row of training offers, for the questions of `live.jsonl` beside this file.

At the end of a run `train.py` lets the model use them; `infer.py --tools` takes this file too.
"""

# A small table in place of a service: a run needs no network.
PHARMACIES = {"Oslo": "Vika Pharmacy, until 23:00", "Rome": "Farmacia Navona, until 22:30"}


def divide_cost(total: float, people: int) -> dict[str, float]:
    """divide a cost among people"""
    return {"share": round(total / people, 2)}


def count_text_words(text: str) -> dict[str, int]:
    """count the words of a text"""
    return {"words": len(text.split())}


def pharmacy_hours(city: str) -> dict[str, str]:
    """get the hours of a pharmacy"""
    return {"pharmacy": PHARMACIES.get(city, "none is known there")}

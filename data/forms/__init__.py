"""The forms of rows that people have, each brought to the plain list that `schema.py` reads."""

"""The next small base: a corpus in plain English, the documents made of it, and the pretraining."""

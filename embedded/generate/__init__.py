"""A grammar of requests, entries and answers: pretraining documents and function-calling rows."""

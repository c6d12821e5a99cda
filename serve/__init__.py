"""OpenAI's chat API on this machine: one continuous batch, several adapters, and a page to chat."""

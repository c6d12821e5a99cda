"""The think-act-observe loop: loading, tools in a child process, scoring."""

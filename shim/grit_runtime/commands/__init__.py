"""One file for each subcommand that we work on: `run(call, settings)` returns the exit code, or becomes the next."""

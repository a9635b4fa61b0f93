"""The command line: a table of commands, made from the functions of `api`, and what each prints."""

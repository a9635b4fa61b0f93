"""The command line: one file per panel, each command a few lines; everything heavy is imported inside."""

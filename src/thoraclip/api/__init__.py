"""The functions that Python and the command line share: one per command, one file per panel of `thoraclip --help`.

    thoraclip probe folds.parquet --out runs/probe --set model=tiny-clip
    thoraclip.probe("folds.parquet", out="runs/probe", model="tiny-clip")

A function's signature and the section "Args" of its docstring are the only description of its arguments; `cli.command`
makes the command from them. What stands first is an argument of the command, what is a keyword is an option, and the
names under `settings` are those behind `--set`. Settings win over the TOML file that is given as `config`.

A file or folder is text, a `Path` or another path-like, such as a `Run`; a manifest is a file or a `Manifest`. A
mistake that the user can mend is a `ThoraclipError`.

Nothing is printed unless it is asked for. `progress=True` writes progress and messages to standard error, or draws a
bar in a notebook. A program that shows them by itself gives `progress`, called with (done, total), and `announce`,
called with a line of text. The total is 0 where it is not known.

`probe`, `finetune` and the other methods have no function of their own in the code: `api.methods` makes one for each
entry of `METHODS`.
"""

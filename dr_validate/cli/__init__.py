"""What a person types and sees.

`run`: from a command line to an exit code, or help; `grammar`, `own_files`, `overrides`: what is wrong with a command
line, with YAML files of the user's own, and with what both compose. `doctor`, `status`: tables for a terminal;
`sweep`, `sweep_table`: several jobs (`-m`) and their one table; `python`: for notebooks.
"""

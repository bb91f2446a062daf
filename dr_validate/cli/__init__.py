"""What a person types and sees.

`run`: from a command line to an exit code; `overrides`: what is wrong with a command line; `help`. `doctor`, `status`,
`summary`: tables for a terminal; `sweep`, `sweep_table`: several jobs (`-m`) and their one table; `python`: for notebooks.
"""

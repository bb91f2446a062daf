"""What a person types and sees.

`run`: from a command line to an exit code, or help; `overrides`: what is wrong with a command line. `doctor`,
`status`: tables for a terminal; `sweep`, `sweep_table`: several jobs (`-m`) and their one table; `python`: for notebooks.
"""

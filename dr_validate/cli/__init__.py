"""What a person types and sees.

`run`: from a command line to an exit code, or help; `grammar`: what is wrong with a command line or with YAML files of
the user's own, before Hydra reads them; `overrides`: with what they compose. `doctor`, `status`: tables for a terminal;
`sweep`, `sweep_table`: several jobs (`-m`) and their one table; `python`: for notebooks.
"""

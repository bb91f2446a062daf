"""`python -m dr_validate`: everything is in `cli/run.py`."""

import signal


def main() -> None:
    """Console entry; see `dr_validate.cli.run.main`."""
    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_usual:  # nothing is at work while modules are imported: Ctrl-C ends that without a traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from dr_validate.cli.run import main as run

    if is_usual:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()

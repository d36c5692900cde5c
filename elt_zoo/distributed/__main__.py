"""Starts one command as several processes of this machine.

python -m elt_zoo.distributed --processes 2 --devices 2 -- elt-zoo train --out runs/pair --mesh.fsdp 2
"""

import argparse

from ._launch import launch


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m elt_zoo.distributed",
        description="Start a command as several processes of this machine that work together.",
    )
    parser.add_argument("--processes", type=int, required=True, help="how many, at least 1")
    parser.add_argument("--devices", type=int, help="CPU devices of each, to try things out; default what each finds")
    parser.add_argument("command", nargs="+", help="the command and its arguments, after --")
    arguments = parser.parse_args()
    try:
        return launch(arguments.command, processes=arguments.processes, devices=arguments.devices)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    raise SystemExit(main())

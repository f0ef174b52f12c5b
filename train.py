"""Trains a spiking network with CPNG: `python train.py --config=digits --workdir=runs/digits`."""

import signal
import sys

# Ctrl-C during the imports below: JAX might swallow the exception that Python makes of it.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

try:
    from cpng_jax.training.__main__ import program
except ModuleNotFoundError as missing:
    sys.exit(f'train.py: the package {missing.name} is not installed: pip install -r requirements.txt')

if __name__ == '__main__':
    program()

"""Which keys of `config.data` have an effect with which data set, by what each declares of itself (`data/entry.py`)."""

from cpng_jax import data
from cpng_jax.data import tfds_sets
from cpng_jax.runtime.config import Only


class _Names(tuple[str, ...]):
    """Names of data sets, of which tfds:NAME stands for all of TFDS."""

    def __contains__(self, name: object) -> bool:
        of_tfds = isinstance(name, str) and name.startswith(tfds_sets.PREFIX)
        return super().__contains__(tfds_sets.ANY if of_tfds else name)


def _readers() -> dict[str, tuple[str, ...]]:
    """The keys that each data set reads; of those that others register nothing is known: they may read any."""
    read = {name: data.find(name).keys for name in (*data.DATASETS, tfds_sets.ANY)}
    return {name: keys for name, keys in read.items() if keys is not None}


def of_data(key: str, *, reads: bool = True) -> tuple[Only, ...]:
    """Makes the condition that a key has an effect with some data sets.

    Args:
      key: of `config.data`.
      reads: whether with those that read it, or with those that do not.

    Returns:
      The condition, for `Key.only`.
    """
    readers = _readers()
    choices = tuple(name for name, keys in readers.items() if (key in keys) == reads)
    return (Only('data.name', choices, _Names(name for name in readers if name not in choices)),)


def modules(key: str) -> str:
    """Names the modules that open the data sets that read a key, for `Key.used_by`.

    Args:
      key: of `config.data`.

    Returns:
      Their names within the package, with commas.
    """
    return ', '.join(dict.fromkeys(data.find(name).module for name, keys in _readers().items() if key in keys))

"""What gets the rows of a run: `metrics.jsonl`, which is the record, and trackers beside it, which are for looking at.

A tracker is a line of `TRACKERS`: TensorBoard, Weights & Biases, or one of your own. That it fails ends no run.
"""

import contextlib
import functools
import importlib
import math
import os
import pathlib
import time
import types
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, cast

from cpng_jax.runtime import files, metrics
from cpng_jax.runtime.config import Config, flatten
from cpng_jax.runtime.errors import UserError


class Writer(Protocol):
    """What takes the rows of a run."""

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """Takes a row.

        Args:
          event: the kind of row, 'step', 'epoch', 'test', 'memory' or 'start'.
          step: the training step it belongs to.
          values: numbers, texts, lists, or mappings of them.
        """
        ...

    def flush(self) -> None:
        """Lets others see what was taken so far; called at the end of each epoch."""
        ...

    def close(self) -> None:
        """Ends the writing."""
        ...


Open = Callable[[pathlib.Path, int], Writer]
"""Maps the workdir, and the step that training goes on from, to a writer; that of rows in `metrics.jsonl` is there."""

Tracker = Callable[[Config], Open | None]
"""Maps a valid configuration to what opens the writer, or to None where it does not ask for the tracker."""


class Writers:
    """`metrics.jsonl` and the writers of trackers as one; use it in a `with`."""

    def __init__(
        self,
        workdir: pathlib.Path,
        trackers: Mapping[str, Open] | None,
        *,
        first_step: int = 0,
        say: Callable[[str], None] = print,
    ) -> None:
        """Opens them.

        Args:
          workdir: folder of the run.
          trackers: what opens their writers, by name, from `chosen`; None in a process that is not the primary one,
            which writes nothing.
          first_step: the step that training goes on from.
          say: shows a line.

        Raises:
          UserError: a row cannot be read, or a tracker cannot be opened.
        """
        self._say = say
        self._beside: dict[str, Writer] = {}
        self._record = None
        if trackers is None:
            return
        with contextlib.ExitStack() as opened:
            self._record = metrics.MetricsWriter(workdir, first_step=first_step)
            opened.callback(self.close)
            for name, open_writer in trackers.items():
                try:
                    self._beside[name] = open_writer(workdir, first_step)
                except UserError:
                    raise
                except Exception as error:  # whatever a tracker may raise
                    raise UserError(f'{name} cannot be opened: {_reason(error)}.') from error
            opened.pop_all()

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """Hands a row to all, to the record first."""
        if self._record:
            self._record.write(event, step, values)
        self._each(lambda writer: writer.write(event, step, values))
        if event == 'epoch':
            self._each(lambda writer: writer.flush())

    def close(self) -> None:
        """Closes all."""
        self._each(lambda writer: writer.close())
        if self._record:
            self._record.close()

    def __enter__(self) -> 'Writers':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _each(self, act: Callable[[Writer], None]) -> None:
        """Does something with the writer of each tracker; one that fails is named, once, and left."""
        for name, writer in list(self._beside.items()):
            try:
                act(writer)
            except Exception as error:  # whatever a tracker may raise
                del self._beside[name]
                self._say(
                    f'{name} fails ({_reason(error)}) and gets no more rows; {metrics.FILE_NAME} has them, and the '
                    'training goes on'
                )


def chosen(config: Config) -> dict[str, Open]:
    """Finds the trackers that a configuration asks for.

    Args:
      config: a valid configuration.

    Returns:
      What opens their writers, by name.

    Raises:
      UserError: a package that one needs is not installed.
    """
    found = {name: tracker(config) for name, tracker in TRACKERS.items()}
    return {name: opens for name, opens in found.items() if opens is not None}


def _reason(error: Exception) -> str:
    return ': '.join(filter(None, (type(error).__name__, ' '.join(str(error).split()).rstrip('.'))))


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """The finite numbers in nested mappings, by a path such as epoch/beta/conv01."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f'{name}/{key}', inner)
    elif isinstance(value, int | float) or hasattr(value, 'item'):
        number = float(value)
        if math.isfinite(number):
            yield name, number


def _tensorboard(config: Config) -> Open | None:
    if not config.log.tensorboard:
        return None
    try:
        import tensorboardX  # noqa: F401
    except ImportError as error:
        raise UserError(
            'Training writes TensorBoard events: pip install tensorboardX, or go without: config.log.tensorboard=False.'
        ) from error
    return _TensorBoard


class _TensorBoard:
    """A file of TensorBoard events, written in this thread: a full disk would end tensorboardX's own writer unseen."""

    def __init__(self, workdir: pathlib.Path, first_step: int) -> None:
        """Opens a file whose events replace those later than `first_step` in older files."""
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2 as protocol

        folder = workdir / 'tensorboard'
        folder.mkdir(exist_ok=True)
        self._scalar, self._protocol = summary.scalar, cast(Any, protocol)
        self._file = EventsWriter(str(folder / 'events'))
        start = self._protocol.SessionLog(status=self._protocol.SessionLog.START)
        self._file.write_event(self._protocol.Event(step=first_step + 1, session_log=start))

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        now = time.time()
        for name, number in _numbers(event, values):
            scalar = self._protocol.Event(wall_time=now, step=step, summary=self._scalar(name, number))
            self._file.write_event(scalar)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _wandb(config: Config) -> Open | None:
    if not config.log.wandb:
        return None
    try:
        wandb = importlib.import_module('wandb')
    except ImportError:
        wandb = None
    # A folder of its name, such as its files lie in, passes for a module.
    if wandb is None or not hasattr(wandb, 'init'):
        raise UserError(f'config.log.wandb is {config.log.wandb!r}, a project of Weights & Biases: pip install wandb.')
    return functools.partial(_WandB, wandb, config)


class _WandB:
    """A run of Weights & Biases, the same for all that goes on in a workdir; its steps are those of the training.

    It takes each step once, in their order. So a run on its server is handed what it lacks, and what is done again,
    bit for bit, after the latest checkpoint is not. Offline there is no telling what it lacks: its files, new ones
    each time that a run goes on, get all rows of the record, so that the latest of them are the whole run.
    """

    # Those of which there are many; of the others the latest counts.
    _SERIES = ('step', 'epoch')

    def __init__(self, wandb: types.ModuleType, config: Config, workdir: pathlib.Path, _: int) -> None:
        online = config.log.wandb_mode == 'online'
        if not online:
            os.environ.setdefault('WANDB_ERROR_REPORTING', 'false')  # its own failures it would send even so
        *team, project = config.log.wandb.split('/')
        self._wandb = wandb
        self._run = wandb.init(
            entity=team[0] if team else None,
            project=project,
            name=workdir.resolve().name,
            id=_id(workdir),
            dir=workdir,
            config=flatten(config),
            allow_val_change=True,
            mode=config.log.wandb_mode,
            resume='allow' if online else None,
            reinit='create_new',
            settings=wandb.Settings(console='off', silent=not online),
        )
        self._next_step = self._run.step
        for row in metrics.read(workdir):
            self.write(row.pop('event'), row.pop('step'), row)

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        numbers = dict(_numbers(event, values))
        with self._served():
            if event not in self._SERIES:
                self._run.summary.update(numbers)
            elif step >= self._next_step:
                self._run.log(numbers, step=step)

    def flush(self) -> None:
        """Nothing: its own process writes, and sends, what it has been handed."""

    def close(self) -> None:
        with self._served():
            self._run.finish()

    @contextlib.contextmanager
    def _served(self) -> Iterator[None]:
        """Gives its process up once that has died: it would fail at the end of this one, and in the next run."""
        try:
            yield
        except ConnectionError:
            with contextlib.suppress(Exception):
                self._wandb.teardown()
            raise


def _id(workdir: pathlib.Path) -> str:
    """The id of the run of Weights & Biases that belongs to a workdir, kept there."""
    path = workdir / 'wandb' / 'id'
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        files.replace(path, uuid.uuid4().hex[:16])
    return path.read_text().strip()


TRACKERS: dict[str, Tracker] = {'TensorBoard': _tensorboard, 'Weights & Biases': _wandb}
"""The trackers by name; `TRACKERS['mine'] = tracker` in a configuration file adds another."""

"""The keys of a configuration: the one place that says what each is, what it may be, and who reads it.

The options of a rule that sets beta are declared in the rule's own file and come from there. Defaults, checks,
`train.py --mode=keys` and docs/keys.md, which `python -m cpng_jax.training.keys` prints, are made from `table()`.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cpng_jax import data
from cpng_jax.control import from_run
from cpng_jax.control.controller import Rule
from cpng_jax.control.effective_domain import INTERVALS
from cpng_jax.control.options import BOOLEAN, TEXT, Option, Range, choice, integer, number
from cpng_jax.control.rules import RULES
from cpng_jax.data.events import SCALES, SLICINGS
from cpng_jax.data.photographs import RESIZES
from cpng_jax.models.blocks import REMATS
from cpng_jax.models.registry import MODELS, NORMS
from cpng_jax.nn.kinds import KINDS
from cpng_jax.nn.neuron import IMPLEMENTATIONS
from cpng_jax.nn.surrogate import SURROGATES
from cpng_jax.runtime import tables
from cpng_jax.runtime.config import FIRST_VERSION, Key, Keys, Only, Retired
from cpng_jax.training.data_keys import modules, of_data
from cpng_jax.training.key_conditions import (
    OWN_RULES,
    of_kinds,
    of_nets,
    of_norms,
    of_rules_that_heed,
    of_shapes,
    of_spikes,
    only_with,
)

RETIRED = {'neuron.ds_atgo': Retired('neuron.kind', since='0.2', values={True: 'ds_atgo', False: 'lif'})}

_POSITIVE, _SHARE = number(0, open_low=True), number(0, 1, open_high=True)


def _accepts_steps(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 2 or any(type(step) is not int for step in value):
        return False
    return tuple(value) == (0, 0) or 1 <= value[0] <= value[1]


def _accepts_shares(value: Any) -> bool:
    if not isinstance(value, list | tuple) or any(type(share) is not float for share in value):
        return False
    return all(low < high for low, high in itertools.pairwise((0, *value, 1)))


def _is_project(value: Any) -> bool:
    part = r'[^/\\#?%:\s]([^/\\#?%:]{0,126}[^/\\#?%:\s])?'
    return isinstance(value, str) and (value == '' or re.fullmatch(rf'({part}/)?{part}', value) is not None)


def _key(
    name: str, default: Any, range: Range, used_by: str, meaning: str, since: str = FIRST_VERSION, **more: Any
) -> Key:
    used = tuple(used_by.split(', '))
    return Key(name, default, range.accepts, range.expected, meaning, since, used, names=range.names, **more)


# Each key has a line of facts and a line of meaning.
# fmt: off


def _run() -> list[Key]:
    seeds = Range(lambda value: type(value) is int and 0 <= value < 2**32, 'an integer from 0 to 2**32 - 1')
    of_source = (Only('init_from', ('the folder of a run, a weights file or zoo/NAME',), ('',)),)
    return [
        _key('seed', 0, seeds, 'training.setup',
             'of initial weights, order of the data, augmentation'),
        _key('epochs', 300, integer(1), 'training.setup',
             'passes over the training data; may be raised within a workdir', grows=True),
        _key('init_from', '', TEXT, 'training.weights',
             'run folder, weights file or zoo/NAME, whose weights, running statistics and beta it starts from', '0.2'),
        _key('init_checkpoint', 'latest', choice('latest', 'best'), 'training.weights',
             'which checkpoint of that run', '0.2', only=of_source),
        _key('init_skip', '', TEXT, 'training.weights',
             'what keeps its own initial values then: layers or arrays, such as output,surrogate', '0.2',
             only=of_source),
        _key('batch_size', 256, integer(1), 'training.setup, training.loop',
             'examples of a training step, over all devices'),
        _key('dtype', 'float32', choice('float32', 'bfloat16'), 'training.setup',
             'of currents and spikes; weights, potentials and statistics are float32'),
        _key('remat', 'none', choice(*REMATS), 'models.registry',
             'block: to need less memory, the backward pass computes each block again'),
    ]


def _data() -> list[Key]:
    names = Range(data.is_name, data.names(), tuple(data.DATASETS))
    return [
        _key('data.name', 'digits', names, 'data',
             'the data set; the last two are those of TFDS, and your own function'),
        _key('data.dir', 'data', TEXT, modules('dir'),
             'where python -m cpng_jax.data.prepare has put it, or the folder of images itself', free=True),
        _key('data.fake', False, BOOLEAN, 'data',
             "True takes random images of the data set's shape instead, for dry runs and benchmarks"),
        _key('data.fake_examples', 2048, integer(4), 'data.fake',
             'training images then; a quarter as many for the test', only=(Only('data.fake', ('True',), (False,)),)),
        _key('data.per_class', 0, integer(0), 'data',
             'training examples of each class, the first ones, for training on few labels; 0 for all', '0.2'),
        _key('data.validation', 0.0, _SHARE, 'data',
             'share of the training examples, of each class, that is not learnt from but chosen by: the best epoch is '
             'that of the best validation accuracy, and the test split is measured at the end; 0 chooses on the test '
             'split, as the paper does', '0.2'),
        _key('data.threads', 2, integer(0), 'training.setup, training.evaluate',
             'threads that read and augment; 0 does it in the training loop', free=True),
        _key('data.workers', 0, integer(0), 'training.setup, training.evaluate',
             "processes that do so, each with its own threads; 0 for none but the program's own", free=True),
        _key('data.crop_padding', 0, integer(0), 'data.augment',
             'pixels added on each side before the random crop; other augmentations follow in the order of keys',
             only=of_data('crop_padding')),
        _key('data.flip', False, BOOLEAN, 'data.augment, data.events',
             'mirror half of the images'),
        _key('data.policy', 'none', choice('none', 'autoaugment', 'randaugment'), 'data.augment',
             'changes of an image, drawn at random; not in the paper', only=of_data('policy')),
        _key('data.cutout', 0, integer(0), 'data.augment',
             'edge of the square that is blanked, in pixels; not in the paper', only=of_data('cutout')),
        _key('data.mixup_alpha', 0.0, number(0), 'training.objective',
             'mixing within the batch, on the device; 0 for none; not in the paper'),
        _key('data.cutmix_alpha', 0.0, number(0), 'training.objective',
             'pasting within the batch, on the device; 0 for none; not in the paper'),
        _key('data.resize', 'crop', choice(*RESIZES), 'data.photographs',
             'crop: random crops, in the test the centre; fixed: whole images, scaled to a square', '0.2',
             only=of_data('resize')),
        _key('data.image_size', 224, integer(1), 'data.photographs, data.entry',
             'edge that images of any size are brought to', only=of_data('image_size')),
        _key('data.event_size', 48, integer(1), f'{modules("event_size")}, data.recordings, data.entry',
             'edge of the frames of event data', only=of_data('event_size')),
        _key('data.slicing', 'count', choice(*SLICINGS), f'{modules("slicing")}, data.recordings',
             'frames of equally many events, or time: of equal length', only=of_data('slicing')),
        _key('data.frame_scale', 'none', choice(*SCALES), f'{modules("frame_scale")}, data.recordings',
             'what the network sees of a frame: counts of events, or max: these by the largest of the frame, as in '
             "TET's code; not in the paper", '0.3', only=of_data('frame_scale')),
        _key('data.roll', 5, integer(0), 'data.events',
             'pixels that training frames are shifted by at most', only=of_data('roll')),
        _key('data.split', 'fixed', choice('fixed', 'random'), modules('split'),
             'which recordings of CIFAR10-DVS are for the test', only=of_data('split')),
        _key('data.time_steps', None, integer(1), f'{modules("time_steps")}, data.recordings, data.entry',
             'frames of a recording', follows='model.time_steps', only=of_data('time_steps')),
    ]


def _network() -> list[Key]:
    return [
        _key('model.name', 'vgg', choice(*MODELS), 'models.registry',
             "the network; further keys of model are the fields of its module, such as model.head"),
        _key('model.width', 1.0, _POSITIVE, 'models.network',
             'factor on all channels'),
        _key('model.time_steps', 5, integer(1), 'models.network',
             'T', only=of_data('time_steps', reads=False)),
        _key('neuron.kind', 'lif', choice(*KINDS), 'models.registry',
             'what neurons do; all but lif are not in the paper', '0.2'),
        _key('neuron.tau', 0.5, number(0, 1), 'nn.neuron_layer, training.setup',
             'decay of the membrane potential; 1 is integrate-and-fire', only=of_kinds('tau')),
        _key('neuron.learn_tau', False, BOOLEAN, 'nn.neuron_layer, training.setup',
             'True learns the decay of each layer, from tau on; not in the paper', '0.2', only=of_kinds('learn_tau')),
        _key('neuron.v_th', 1.0, _POSITIVE, 'nn.neuron_layer, models.registry, training.setup',
             'threshold', only=of_kinds('v_th')),
        _key('neuron.surrogate', 'triangular', choice(*SURROGATES), 'nn.neuron_layer, training.setup',
             'shape of the surrogate gradient (Eq. 3 and 4)', only=of_kinds('surrogate')),
        _key('neuron.detach_reset', False, BOOLEAN, 'nn.neuron_layer, training.setup',
             'True drops the gradient through the reset (Eq. 8)', only=of_kinds('detach_reset')),
        _key('neuron.implementation', 'auto', choice(*IMPLEMENTATIONS), 'nn.neuron_layer, training.setup',
             'pallas: kernels for a single GPU; auto: these where they are faster', free=True,
             only=of_kinds('implementation')),
        _key('neuron.levels', 4, integer(1), 'nn.analog_neuron',
             'steps that activations are quantized to', '0.3', only=of_kinds('levels')),
        _key('neuron.threshold', 8.0, _POSITIVE, 'nn.analog_neuron',
             'where activations are clipped at first; it is learnt', '0.3', only=of_kinds('threshold')),
        _key('norm.kind', 'tdbn', choice(*NORMS), 'models.registry',
             'what stands between a convolution and its neurons: tdBN, a bias for each channel, or nothing', '0.3'),
        _key('norm.alpha', 1.0, _POSITIVE, 'nn.layers',
             "tdBN's factor next to v_th", only=of_norms()),
        _key('norm.alpha_residual', 0.5**0.5, _POSITIVE, 'models.registry',
             'the same where two branches are summed', only=(*of_nets('alpha_residual'), *of_norms())),
        _key('norm.momentum', 0.9, _SHARE, 'nn.layers',
             'share of the running statistics kept at each step', only=of_norms()),
    ]


def _training() -> list[Key]:
    of_tet = (Only('loss.name', ('tet',), ('mean_output', 'sum_output')),)
    of_steps = (Only('optim.schedule', ('steps',), ('cosine',)),)
    shares = Range(_accepts_shares, 'rising shares of the training, such as (0.45, 0.7, 0.9)')
    return [
        _key('loss.name', 'mean_output', choice('mean_output', 'tet', 'sum_output'), 'training.objective',
             'cross entropy of the outputs averaged over time (Eq. 5), of each time step, TET, or of their sum'),
        _key('loss.tet_weight', 1e-3, number(0, 1), 'training.objective',
             'lambda of TET', only=of_tet),
        _key('loss.tet_target', None, number(0), 'training.objective',
             'what the second term of TET draws outputs to', follows='neuron.v_th', only=of_tet),
        _key('loss.label_smoothing', 0.0, _SHARE, 'training.objective',
             'share of a label that is spread over all classes'),
        _key('optim.name', 'sgd', choice('sgd', 'adam', 'amsgrad'), 'training.optim',
             'the optimiser (Table 5); amsgrad is not in the paper'),
        _key('optim.accumulate', 1, integer(1), 'training.setup',
             'micro-batches of a batch that gradients are accumulated over, to need less memory'),
        _key('optim.learning_rate', 0.1, _POSITIVE, 'training.optim',
             'at its highest, after the warm-up; from there by optim.schedule (Table 5)'),
        _key('optim.schedule', 'cosine', choice('cosine', 'steps'), 'training.optim',
             'a cosine to 0, or steps down, which are not in the paper', '0.3'),
        _key('optim.cosine_epochs', 0, integer(0), 'training.optim',
             'from the peak to 0, and as many back up, again and again; 0 for the whole training', '0.3',
             only=(Only('optim.schedule', ('cosine',), ('steps',)),)),
        _key('optim.step_at', (0.45, 0.7, 0.9), shares, 'training.optim',
             'shares of the training at which the learning rate changes', '0.3', only=of_steps),
        _key('optim.step_factor', 0.1, _SHARE, 'training.optim',
             'what it is multiplied by there', '0.3', only=of_steps),
        _key('optim.momentum', 0.9, _SHARE, 'training.optim',
             'of SGD (Table 5)', only=(Only('optim.name', ('sgd',), ('adam', 'amsgrad')),)),
        _key('optim.weight_decay', 1e-4, number(0), 'training.optim',
             'factor of the weights that is added to their gradients (Table 5)'),
        _key('optim.decay_norm_and_bias', True, BOOLEAN, 'training.optim',
             'False spares norms and biases the weight decay'),
        _key('optim.warmup_fraction', 0.05, _SHARE, 'training.optim',
             'of the training, linear from 0.1 of the learning rate (A.2); 0 for none'),
    ]


def _beta() -> list[Key]:
    return [
        _key('cpng.enabled', True, BOOLEAN, 'training.setup',
             'False keeps beta at beta_init, whatever the rule'),
        *(key._replace(only=(*of_spikes(), *key.only)) for key in _surrogates()),
    ]


def _surrogates() -> list[Key]:
    """Those of networks that spike."""
    return [
        _key('cpng.beta_init', 1.0, _POSITIVE, 'models.registry, training.setup, training.loop',
             'width parameter of every layer at the start, unless init_from brings one'),
        _key('cpng.scale_init', 1.0, _POSITIVE, 'models.registry',
             'factor of the surrogate gradient of every layer at the start, its height; not in the paper', '0.2'),
        _key('cpng.chi', 'gaussian', choice('gaussian', 'counted'), 'training.setup',
             'Eq. 6, or counted: the share of the potentials themselves; not in the paper', '0.2'),
        _key('cpng.interval', 'paper', choice(*INTERVALS), 'training.setup',
             '[v_th - 1/beta, v_th + 1/beta] for every shape, or the support of the shape', only=of_shapes()),
        _key('cpng.rule', 'cpng', choice(*RULES), 'training.setup',
             'what sets beta: Algorithm 1, or a rule of other papers', '0.2'),
        _key('cpng.per', 'layer', choice('layer', 'channel'), 'models.registry',
             'channel: a beta for each channel of a layer; not in the paper', '0.2', only=of_rules_that_heed('per')),
        _key('cpng.every', 'epoch', choice('epoch', 'batch'), 'training.setup',
             'how often beta is set (Table 1)', only=of_rules_that_heed('every')),
        _key('cpng.statistics', 'last_batch', choice('last_batch', 'epoch_mean'), 'training.setup',
             'which potentials of an epoch count (A.2)'),
        *_options(),
    ]


def _options() -> list[Key]:
    """Those that rules declare."""
    rules = {}  # of each option, those that declare it
    for rule in RULES.values():
        for option in rule.options:
            rules.setdefault(option, []).append(rule)
    # The first of them reads it, and others are made of that.
    module = lambda rule: rule.make.__module__.removeprefix('cpng_jax.')
    return [
        _key(f'cpng.{option.name}', option.default, option.range, module(declaring[0]),
             option.meaning, option.since, only=_of_rules(declaring, option))
        for option, declaring in rules.items()
    ]


def _of_rules(rules: Sequence[Rule], option: Option) -> tuple[Only, ...]:
    if from_run.RULE not in rules:
        return only_with('cpng.rule', OWN_RULES, lambda name: option in RULES[name].options)
    # The beta of a run goes in front of any rule.
    return () if option.name == 'beta_from' else (Only('cpng.beta_from', ('the folder of a run',), ('',)),)


def _machine() -> list[Key]:
    projects = Range(_is_project, "'', PROJECT or TEAM/PROJECT, at most 128 characters each but none of \\ # ? % :")
    steps = Range(_accepts_steps, 'the first and the last step, such as (20, 25), or (0, 0) for none')
    return [
        _key('eval.batch_size', 256, integer(1), 'training.evaluate',
             'examples that are measured at once', free=True),
        _key('eval.checkpoint', 'latest', choice('latest', 'best'), 'training.evaluate',
             'what --mode=eval restores', free=True),
        _key('checkpoint.every_epochs', 1, integer(1), 'training.saving',
             'epochs from one checkpoint to the next; the last and the best have one in any case', '0.2', free=True),
        _key('checkpoint.every_steps', 0, integer(0), 'training.saving',
             'also within an epoch, every so many steps; 0 for not', free=True),
        _key('checkpoint.keep', 2, integer(1), 'training.loop',
             'latest checkpoints kept, next to the best', free=True),
        _key('distributed', 'auto', choice('auto', 'on', 'off'), 'runtime.distributed',
             'several processes are one run where a cluster started them; on: it must; off: never', free=True),
        _key('cluster.start_timeout', 300, integer(1), 'runtime.distributed',
             'seconds that the processes wait for each other at the start', free=True),
        _key('cluster.heartbeat_timeout', 100, integer(1), 'runtime.distributed',
             'seconds of silence after which a process counts as dead', free=True),
        _key('compilation_cache', 'auto', TEXT, 'training.setup',
             "folder that compiled programs are kept in for the next start; auto: the user's cache folder; '': none",
             '0.3', free=True),
        _key('mesh.fsdp', False, BOOLEAN, 'training.setup',
             'True shares weights and optimiser state out over the devices, to need less memory', free=True),
        _key('profile.steps', (0, 0), steps, 'training.loop',
             'first and last step that a trace is written of, or (0, 0) for none', free=True),
        _key('log.every_steps', 10, integer(1), 'training.loop',
             'steps between two looks at the loss', free=True),
        _key('log.tensorboard', True, BOOLEAN, 'runtime.trackers',
             'events for TensorBoard, too', '0.3', free=True),
        _key('log.wandb', '', projects, 'runtime.trackers',
             "project of Weights & Biases that gets the run, too; '' for none", '0.3', free=True),
        _key('log.wandb_mode', 'offline', choice('offline', 'online'), 'runtime.trackers',
             'offline: files that wandb sync sends later; online: what is logged leaves the machine', '0.3', free=True,
             only=(Only('log.wandb', ('a project',), ('',)),)),
    ]


# fmt: on


def _groups() -> dict[str, list[Key]]:
    """The keys by the headings that they are shown under."""
    return {
        'The run': _run(),
        'Data': _data(),
        'The network': _network(),
        'Loss and optimiser': _training(),
        'What sets beta': _beta(),
        'Evaluation, checkpoints, devices': _machine(),
    }


def table() -> Keys:
    """Gathers the keys, with those of rules, kinds of neurons, networks and data sets that others have registered.

    Returns:
      The keys, in the order to show them in.

    Raises:
      ValueError: a rule has an option by the name of another key.
    """
    keys = [key for group in _groups().values() for key in group]
    known = {key.name: key for key in keys}
    for key in keys:
        if key is not known[key.name]:
            raise ValueError(f'{key.name} is a key already, so that the option of a rule must have another name.')
    return Keys(known, RETIRED)


def markdown() -> str:
    """Writes all keys, kinds of neurons, rules and retired keys as the page docs/keys.md."""
    parts = [f'# Keys of a configuration\n\n{_ABOUT}\n\n{FREE}\n']
    for title, group in _groups().items():
        parts.append(f'## {title}\n\n{tables.to_markdown([_as_code(described(key)) for key in group])}')
    names = {'`neuron.kind`': KINDS, '`cpng.rule`': RULES}
    for title, named in names.items():
        rows = [{'name': f'`{name}`', 'meaning': entry.title} for name, entry in named.items()]
        parts.append(f'## Names of {title}\n\n{tables.to_markdown(rows)}')
    rows = [
        {'key': f'`{name}`', 'since': key.since, 'now': f'`{key.becomes}={new}`', 'for': f'`{old}`'}
        for name, key in RETIRED.items()
        for old, new in key.values.items()
    ]
    parts.append(f'## Retired\n\nRuns that have these go on.\n\n{tables.to_markdown(rows)}')
    return '\n'.join(parts)


_ABOUT = """Made by `python -m cpng_jax.training.keys > docs/keys.md`; a test keeps it equal to the program. A flag
`--config.KEY=VALUE` changes a value. `python train.py --mode=keys` shows the same, with `--match=cpng` the keys whose
names contain that. Where a key has no effect with what else is chosen, it has to stay at its default; *only with* says
with what it has one. *Since* is the version that added a key; *used by* names modules of `cpng_jax`."""

FREE = 'A key with a * may differ between the runs of one workdir.'


def described(key: Key) -> dict[str, str]:
    """A key as a row of a table, by the headings of its columns."""
    return {
        'key': key.name + ' *' * key.free,
        'default': key.follows or repr(key.default),
        'range': key.expected,
        'meaning': key.meaning,
        'only with': '; '.join(map(str, key.only)),
        'since': key.since,
        'used by': ', '.join(key.used_by),
    }


def _as_code(row: Mapping[str, str]) -> dict[str, str]:
    """The cells that are code as code, the star of a free key outside of it."""
    name, _, star = row['key'].partition(' ')
    return {**row, 'key': f'`{name}` {star}'.strip(), 'default': f'`{row["default"]}`'}


if __name__ == '__main__':
    print(markdown(), end='')

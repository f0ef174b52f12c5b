import jax.numpy as jnp

from cpng_jax.control import layer_tree
from cpng_jax.runtime import console as report

ROW = {
    'epoch': 3,
    'train_accuracy': 0.5,
    'train_loss': 1.25,
    'test_accuracy': 0.456,
    'test_loss': 1.5,
    'beta': {'a': 1.0, 'b': 1.2, 'c': 2.0},
    'chi': {'a': 0.4, 'b': 0.3, 'c': 0.2},
    'firing_rate': {'a': 0.1, 'b': 0.2, 'c': 0.3},
    'images_per_second': 812.4,
    'data_wait': 0.07,
    'skipped': [],
}


def test_an_epoch_is_one_line():
    assert report.epoch_line(ROW, {'best_accuracy': 0.47}, 40) == (
        'epoch   3/40  train 50.0% loss 1.250  test 45.6% loss 1.500 (best 47.0%)  '
        'beta 1.00 1.20 2.00  chi 0.200 0.300 0.400  firing 20.0%  812 images/s, 7% waiting for data'
    )


def test_layers_that_cpng_left_out_are_named():
    line = report.epoch_line(ROW | {'skipped': ['conv01/lif', 'conv07/lif']}, {'best_accuracy': 0.5}, 40)
    assert line.splitlines()[1] == '  CPNG kept the beta of conv01/lif, conv07/lif: potentials constant or not finite'


def test_layers_are_named_by_their_path_in_order():
    tree = {'conv02': {'lif': {'beta': jnp.float32(2)}}, 'conv01': {'lif': {'beta': jnp.array([1.0, 3.0])}}}
    assert list(layer_tree.by_layer(tree).items()) == [('conv01/lif', 2.0), ('conv02/lif', 2.0)]

"""What a network is handed: what it cannot take is one sentence, whichever network it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpng_jax.models.resnet import ResNet
from cpng_jax.models.sew_resnet import SEWResNet
from cpng_jax.models.vgg import VGG

NETWORKS = {
    'VGG': VGG(3, stages=((2,), (2,)), time_steps=2),
    'ResNet': ResNet(3, blocks=(1,), widths=(2,), stem_width=2, time_steps=2),
    'SEWResNet': SEWResNet(3, blocks=(1,), widths=(2,), stem_width=2, time_steps=2),
}


@pytest.fixture(scope='module', params=list(NETWORKS))
def network(request):
    """A network, and the shapes of its variables for images of 8 x 8 pixels with two channels."""
    model = NETWORKS[request.param]
    return model, jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 2)))


def outputs(network, x):
    model, variables = network
    return jax.eval_shape(lambda variables: model.apply(variables, x), variables)


TAKES = r'^\w+ takes images \[B, H, W, C\] or events \[T, B, H, W, C\]'


@pytest.mark.parametrize(
    ('x', 'error', 'sentence'),
    [
        (np.zeros((2, 8, 8, 2), np.uint8), TypeError, TAKES + r' of floating numbers, .*, got dtype uint8\.'),
        (np.zeros((2, 8, 8, 2), int), TypeError, r'got dtype int64\.'),
        (np.zeros((2, 8, 8, 2), bool), TypeError, r'got dtype bool\.'),
        (np.zeros((2, 8, 8, 2), complex), TypeError, r'got dtype complex128\.'),
        ([[[[0.0, 0.0]]]], TypeError, TAKES + r' as an array, got list\.'),
        (None, TypeError, r'got NoneType\.'),
        (np.zeros((8, 8, 2), np.float32), ValueError, TAKES + r', got shape \(8, 8, 2\)\.'),
        (np.zeros((1, 1, 2, 8, 8, 2), np.float32), ValueError, r'got shape \(1, 1, 2, 8, 8, 2\)\.'),
        (np.zeros((0, 8, 8, 2), np.float32), ValueError, r'with at least one of each, got shape \(0, 8, 8, 2\)\.'),
        (np.zeros((0, 2, 8, 8, 2), np.float32), ValueError, r'got shape \(0, 2, 8, 8, 2\)\.'),
        (np.zeros((2, 8, 8, 0), np.float32), ValueError, r'got shape \(2, 8, 8, 0\)\.'),
        (np.zeros((2, 0, 8, 2), np.float32), ValueError, r'got shape \(2, 0, 8, 2\)\.'),
        (
            np.zeros((2, 8, 8, 3), np.float32),
            ValueError,
            r'^\w+ was initialised for another number of channels or another size than those of shape \(2, 8, 8, 3\): ',
        ),
    ],
    ids=lambda value: '',
)
def test_what_is_no_batch_of_images_is_one_sentence(network, x, error, sentence):
    with pytest.raises(error, match=sentence):
        outputs(network, x)


def test_another_size_is_one_sentence_where_the_last_layer_sees_the_map():
    model = NETWORKS['VGG']
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 2)))
    with pytest.raises(ValueError, match=r'VGG was initialised for .* another size than those of shape \(1, 6, 6, 2\)'):
        outputs((model, variables), np.zeros((1, 6, 6, 2), np.float32))


@pytest.mark.parametrize('dtype', [np.float64, np.float32, np.float16, jnp.bfloat16], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize('shape', [(2, 8, 8, 2), (3, 2, 8, 8, 2)], ids=['images', 'events'])
def test_floating_images_and_events_are_taken(network, dtype, shape):
    steps = shape[0] if len(shape) == 5 else 2
    assert outputs(network, np.zeros(shape, dtype)).shape == (steps, 2, 3)

"""VGG16, ResNet19 and SEW-ResNet34 from SpikingJelly's layers, with our architecture and our names of layers.

As on our side, the first convolution and norm of a static image are computed once and presented at each time step.
"""

from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from spikingjelly.activation_based import functional, layer, neuron, surrogate  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from benchmarks.cases import NETWORKS, Arrays, Case

_VGG16 = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
_SUMMED = 0.5**0.5


def _lif() -> nn.Module:
    return neuron.LIFNode(tau=2.0, decay_input=False, surrogate_function=surrogate.PiecewiseQuadratic(alpha=1.0))


def _integrate_and_fire() -> nn.Module:
    return neuron.IFNode(surrogate_function=surrogate.ATan(alpha=2.0), detach_reset=True)


class ConvNorm(nn.Module):
    """Convolution and tdBN; `sew` an ordinary batch norm and integrate-and-fire neurons; `spiking` with neurons."""

    def __init__(
        self,
        channels: tuple[int, int],
        kernel: int = 3,
        stride: int = 1,
        *,
        alpha: float = 1.0,
        spiking: bool = True,
        sew: bool = False,
    ) -> None:
        """Takes the numbers of channels that go in and come out."""
        super().__init__()
        self.conv = layer.Conv2d(*channels, kernel, stride, kernel // 2, bias=False)
        out = channels[1]
        self.norm = layer.BatchNorm2d(out) if sew else layer.ThresholdDependentBatchNorm2d(alpha, 1.0, out)
        self.scale = alpha
        self.lif = (_integrate_and_fire() if sew else _lif()) if spiking else nn.Identity()

    def forward(self, x: Any, time_steps: int = 0) -> Any:
        """Maps `[T, B, C, H, W]`, or `[1, B, C, H, W]` that is to be presented `time_steps` times."""
        x = self.norm(self.conv(x))
        return self.lif(x.expand(time_steps, *x.shape[1:]) if time_steps else x)


class ResidualBlock(nn.Module):
    """Neurons that fire on the sum of two branches."""

    def __init__(self, inputs: int, features: int, stride: int) -> None:
        """Takes channels and stride; a shortcut is a convolution where the shape changes."""
        super().__init__()
        self.conv1 = ConvNorm((inputs, features), stride=stride)
        self.conv2 = ConvNorm((features, features), alpha=_SUMMED, spiking=False)
        same = inputs == features and stride == 1
        self.shortcut = nn.Identity() if same else ConvNorm((inputs, features), 1, stride, alpha=_SUMMED, spiking=False)
        self.lif = _lif()

    def forward(self, x: Any) -> Any:
        """Maps spikes `[T, B, C, H, W]` to spikes."""
        return self.lif(self.shortcut(x) + self.conv2(self.conv1(x)))


class SEWBlock(nn.Module):
    """Two layers of neurons whose spikes are added to those of the shortcut."""

    def __init__(self, inputs: int, features: int, stride: int) -> None:
        """Takes channels and stride; a shortcut is a layer of neurons where the shape changes."""
        super().__init__()
        self.conv1 = ConvNorm((inputs, features), stride=stride, sew=True)
        self.conv2 = ConvNorm((features, features), sew=True)
        same = inputs == features and stride == 1
        self.shortcut = nn.Identity() if same else ConvNorm((inputs, features), 1, stride, sew=True)

    def forward(self, x: Any) -> Any:
        """Maps `[T, B, C, H, W]` to `[T, B, C', H', W']`."""
        return self.conv2(self.conv1(x)) + self.shortcut(x)


class Network(nn.Module):
    """Layers in a row, from an image `[B, 3, H, W]` to `[T, B, classes]`; the first presents the image T times."""

    def __init__(self, time_steps: int, layers: dict[str, nn.Module]) -> None:
        """Takes the layers by name."""
        super().__init__()
        self.time_steps = time_steps
        for name, module in layers.items():
            self.add_module(name, module)
        functional.set_step_mode(self, 'm')

    def forward(self, x: Any) -> Any:
        """Computes the outputs at each time step."""
        first, *rest = self.children()
        x = first(x[None], self.time_steps)
        for module in rest:
            x = module(x)
        return x


class MeanOverMap(nn.Module):
    """Averages over height and width."""

    def forward(self, x: Any) -> Any:
        """Maps `[T, B, C, H, W]` to `[T, B, C]`."""
        return x.mean((3, 4))


def make_network(case: Case) -> Network:
    """Builds the network of a case, in training mode.

    Args:
      case: of a network.

    Returns:
      The module.
    """
    classes = NETWORKS[case.name].classes
    scaled = lambda features: max(1, round(features * case.width))
    if case.name == 'vgg16':
        return Network(case.time_steps, _vgg16(scaled, classes, case.image_size // 16))
    if case.name == 'resnet19':
        layers, channels = _residual(ResidualBlock, (3, 3, 2), [scaled(f) for f in (128, 256, 512)], scaled(128))
        layers = {'stage0_stem': ConvNorm((3, scaled(128))), **layers, 'mean': MeanOverMap()}
        layers |= {'stage4_fc1': layer.Linear(channels, scaled(256)), 'stage4_fc1_lif': _lif()}
        return Network(case.time_steps, {**layers, 'output': layer.Linear(scaled(256), classes)})
    layers, channels = _residual(SEWBlock, (3, 4, 6, 3), [scaled(f) for f in (64, 128, 256, 512)], scaled(64))
    stem = {'stage0_stem': ConvNorm((3, scaled(64)), 7, 2, sew=True), 'pool': layer.MaxPool2d(3, 2, 1)}
    return Network(
        case.time_steps, {**stem, **layers, 'mean': MeanOverMap(), 'output': layer.Linear(channels, classes)}
    )


def _vgg16(scaled: Any, classes: int, edge: int) -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {}
    channels, index = 3, 0
    for stage, widths in enumerate(_VGG16):
        if stage:
            layers[f'pool{stage}'] = layer.AvgPool2d(2)
        for features in map(scaled, widths):
            index += 1
            layers[f'conv{index:02d}'] = ConvNorm((channels, features))
            channels = features
    layers['flatten'] = layer.Flatten()
    inputs = channels * edge * edge
    for index in (14, 15):
        layers[f'fc{index}'], layers[f'fc{index}_lif'] = layer.Linear(inputs, scaled(4096)), _lif()
        inputs = scaled(4096)
    return {**layers, 'output': layer.Linear(inputs, classes)}


def _residual(block: Any, blocks: Any, widths: list[int], channels: int) -> tuple[dict[str, nn.Module], int]:
    """Blocks of all stages by name, and the channels that the last has."""
    layers = {}
    for stage, (count, features) in enumerate(zip(blocks, widths, strict=True), start=1):
        for index in range(1, count + 1):
            stride = 2 if stage > 1 and index == 1 else 1
            layers[f'stage{stage}_block{index:02d}'] = block(channels, features, stride)
            channels = features
    return layers, channels


def _places(network: Network) -> dict[str, tuple[Any, float, int]]:
    """Our path of each parameter -> the parameter, the factor that ours is multiplied by, channels before a flatten."""
    places = {}
    for name, module in network.named_modules():
        path = name.replace('.', '/')
        if isinstance(module, ConvNorm):
            places[f'{path}/conv/conv/kernel'] = (module.conv.weight, 1.0, 0)
            places[f'{path}/norm/scale'] = (module.norm.weight, module.scale, 0)
            places[f'{path}/norm/bias'] = (module.norm.bias, 1.0, 0)
            channels = module.conv.out_channels
        elif isinstance(module, nn.Linear):
            flattened = channels if module.in_features != channels and name == 'fc14' else 0
            places[f'{path}/dense/kernel'] = (module.weight, 1.0, flattened)
            places[f'{path}/dense/bias'] = (module.bias, 1.0, 0)
    return places


def set_parameters(network: Network, given: Arrays) -> None:
    """Takes our parameters over.

    Args:
      network: from `make_network`.
      given: each of our parameters as `params/PATH`, and anything else.

    Raises:
      ValueError: the two networks do not have the same parameters.
    """
    places = _places(network)
    ours = {name.removeprefix('params/') for name in given if name.startswith('params/')}
    if ours != set(places):
        raise ValueError(f'these parameters are not on both sides: {sorted(ours ^ set(places))}.')
    with torch.no_grad():
        for path, (parameter, factor, channels) in places.items():
            array = given[f'params/{path}'] * np.float32(factor)
            if channels:  # ours are flattened in the order H, W, C
                array = array.reshape(-1, channels, array.shape[1]).swapaxes(0, 1).reshape(array.shape)
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(array)))


def parameter_gradients(network: Network) -> Arrays:
    """Reads the gradient of each parameter after a backward pass, as `gradient/PATH`, in our layout."""
    gradients = {}
    for path, (parameter, factor, channels) in _places(network).items():
        array = parameter.grad.cpu().numpy() * np.float32(factor)
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        if channels:
            array = array.reshape(channels, -1, array.shape[1]).swapaxes(0, 1).reshape(array.shape)
        gradients[f'gradient/{path}'] = array
    return gradients

"""Every key of a configuration, with the paper's setting where it has one.

An experiment's file calls `get_config()` and changes what is its own. `cpng_jax/config.py` has the range of each key.
"""

from ml_collections import ConfigDict

from cpng_jax.runtime.config import Config


def get_config() -> Config:
    """Returns the defaults that the experiments start from."""
    config: Config = ConfigDict()
    config.seed = 0  # initial weights, order of the data, augmentation
    config.epochs = 300
    config.batch_size = 256
    config.dtype = 'float32'  # of currents and spikes, or bfloat16; weights, potentials and statistics are float32
    config.remat = 'none'  # or block: to need less memory, the backward pass computes each block again

    config.data = ConfigDict()
    config.data.name = 'digits'
    config.data.dir = 'data'  # where python -m cpng_jax.data.prepare has put it
    config.data.fake = False  # True takes random images of the data set's shape instead, for dry runs and benchmarks
    config.data.fake_examples = 2048  # training images then; a quarter as many for the test
    config.data.per_class = 0  # training examples of each class, the first ones, for training on few labels; 0 for all
    config.data.threads = 2  # threads that read and augment; 0 does it in the training loop
    config.data.workers = 0  # processes that do so, each with its own threads; 0 for none but the program's own
    # Augmentation of images, in this order.
    config.data.crop_padding = 0  # pixels added on each side before the random crop
    config.data.flip = False  # mirror half of the images
    config.data.policy = 'none'  # or autoaugment, randaugment; not in the paper
    config.data.cutout = 0  # edge of the square that is blanked, in pixels; not in the paper
    config.data.mixup_alpha = 0.0  # mixing within the batch, on the device; not in the paper
    config.data.cutmix_alpha = 0.0
    config.data.image_size = 224  # edge of ImageNet's images
    # Events.
    config.data.event_size = 48  # edge of the frames
    config.data.slicing = 'count'  # frames of equally many events, or time: of equal length
    config.data.roll = 5  # pixels that training frames are shifted by at most
    config.data.split = 'fixed'  # or random: which recordings of CIFAR10-DVS are for the test

    config.model = ConfigDict()  # name, then the fields of that network's module
    config.model.name = 'vgg'
    config.model.width = 1.0  # factor on all channels
    config.model.time_steps = 5  # T
    config.data.time_steps = config.model.get_ref('time_steps')  # one value, so that frames and network agree

    config.neuron = ConfigDict()
    config.neuron.tau = 0.5  # decay of the membrane potential; 1 is integrate-and-fire
    config.neuron.learn_tau = False  # True learns the decay of each layer, from tau on; not in the paper
    config.neuron.ds_atgo = False  # True has threshold and width follow the potentials at each step; not in the paper
    config.neuron.v_th = 1.0  # threshold
    config.neuron.surrogate = 'triangular'  # triangular, rectangular, arctan (Eq. 3 and 4)
    config.neuron.detach_reset = False  # True drops the gradient through the reset (Eq. 8)
    config.neuron.implementation = 'scan'  # or pallas: kernels for a single GPU, not tried on one yet

    config.norm = ConfigDict()
    config.norm.alpha = 1.0  # tdBN's factor next to v_th
    config.norm.alpha_residual = 0.5**0.5  # the same where two branches are summed
    config.norm.momentum = 0.9  # share of the running statistics kept at each step

    config.loss = ConfigDict()
    config.loss.name = 'mean_output'  # cross entropy of the outputs averaged over time (Eq. 5), or tet
    config.loss.tet_weight = 1e-3  # lambda of TET
    config.loss.tet_target = config.neuron.get_ref('v_th')
    config.loss.label_smoothing = 0.0

    config.optim = ConfigDict()  # Table 5
    config.optim.name = 'sgd'  # or adam
    config.optim.accumulate = 1  # parts that a batch is worked off in, to need less memory
    config.optim.learning_rate = 0.1
    config.optim.momentum = 0.9  # of SGD
    config.optim.weight_decay = 1e-4
    config.optim.decay_norm_and_bias = True  # False spares norms and biases the weight decay
    config.optim.warmup_fraction = 0.05  # of the training, linear from 0.1 of the learning rate (A.2); 0 for none

    config.cpng = ConfigDict()
    config.cpng.enabled = True  # False keeps beta at beta_init
    config.cpng.beta_init = 1.0  # width parameter of every layer at the start
    config.cpng.beta_from = ''  # folder of a run whose final beta the layers take (A.4), or none
    config.cpng.beta_from_epoch = 0  # epochs before they do
    config.cpng.chi = 'gaussian'  # Eq. 6, or counted: the share of the potentials themselves; not in the paper
    config.cpng.chi_limit = 0.2  # Sec. 5.2
    config.cpng.limit_mode = 'delayed'  # as Algorithm 1 prints it, or immediate
    config.cpng.interval = 'paper'  # [v_th - 1/beta, v_th + 1/beta] for every shape, or support
    config.cpng.rule = 'cpng'  # Algorithm 1, or a rule of other papers: mpd_agl, ds_atgo, lsg, dspike
    config.cpng.dspike_epsilon = 0.3  # shift of weights for dspike's finite differences, by their root mean square
    config.cpng.dspike_step = 0.1  # of beta
    config.cpng.per = 'layer'  # or channel: a beta for each channel of a layer; not in the paper
    config.cpng.every = 'epoch'  # or batch (Table 1)
    config.cpng.statistics = 'last_batch'  # of the epoch (A.2), or epoch_mean

    config.eval = ConfigDict()
    config.eval.batch_size = 256
    config.eval.checkpoint = 'latest'  # or best: what --mode=eval restores

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 0  # besides the end of each epoch; 0 for only there
    config.checkpoint.keep = 2  # latest checkpoints kept, next to the best

    config.distributed = 'auto'  # several processes are one run where a cluster started them; on: it must; off: never
    config.cluster = ConfigDict()
    config.cluster.start_timeout = 300  # seconds that the processes wait for each other at the start
    config.cluster.heartbeat_timeout = 100  # seconds of silence after which a process counts as dead
    config.mesh = ConfigDict()
    config.mesh.fsdp = False  # True shares weights and optimiser state out over the devices, to need less memory

    config.profile = ConfigDict()
    config.profile.steps = (0, 0)  # first and last step that a trace is written of, or (0, 0) for none

    config.log = ConfigDict()
    config.log.every_steps = 10  # steps between two looks at the loss
    return config

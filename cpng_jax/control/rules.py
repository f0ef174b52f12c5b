"""The one table of what sets surrogate gradients: a new rule is a file like those beside this one, and a line here."""

from cpng_jax.control import (
    chi_gain,
    coherent_gain,
    condition_iv,
    cpng,
    cpng_gain,
    ds_atgo,
    dspike,
    fixed,
    from_run,
    gain,
    gain_width,
    lsg,
    mpd_agl,
)
from cpng_jax.control.controller import Controller, Rule, Settings

RULES: dict[str, Rule] = {
    'cpng': cpng.RULE,
    'gain': gain.RULE,
    'coherent_gain': coherent_gain.RULE,
    'chi_gain': chi_gain.RULE,
    'cpng_gain': cpng_gain.RULE,
    'gain_width': gain_width.RULE,
    'condition_iv': condition_iv.RULE,
    'mpd_agl': mpd_agl.RULE,
    'ds_atgo': ds_atgo.RULE,
    'lsg': lsg.RULE,
    'dspike': dspike.RULE,
    'fixed': fixed.RULE,
    'from_run': from_run.RULE,
}


def make(name: str, settings: Settings) -> Controller:
    """Makes the controller of a rule.

    Args:
      name: a key of `RULES`.
      settings: of the run; with the option `beta_from` the rule goes on from the beta of another run.

    Returns:
      The controller.

    Raises:
      ValueError: no rule has that name, or the settings do not go together with it; the message is a sentence.
    """
    if name not in RULES:
        raise ValueError(f'rule must be one of {", ".join(RULES)}, got {name!r}.')
    rule = RULES[name]
    settings = settings._replace(options={**_defaults(), **settings.options})
    conflict = rule.conflict(settings)
    if conflict is not None:
        raise ValueError(conflict)
    controller = rule.make(settings)
    if settings.options['beta_from'] and rule is not from_run.RULE:
        return from_run.in_front_of(controller, settings)
    return controller


def _defaults() -> dict[str, object]:
    return {option.name: option.default for rule in RULES.values() for option in rule.options}

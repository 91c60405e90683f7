"""What a study tunes, in Hydra's own grammar of sweeps, as Optuna's distributions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from wardround.core.errors import ConfigError

Distribution: TypeAlias = CategoricalDistribution | FloatDistribution | IntDistribution

GRAMMAR: Final = (
    "interval(1e-4,1e-2), tag(log,interval(1e-4,1e-2)), int(interval(1,9)), range(1,9) without its end, "
    "choice(4,8,16) or 4,8,16"
)
OWN: Final = {
    "output": "name the study's folder: --output runs/NAME",
    "resume": "repeat the command that began the study: it goes on by itself",
}
"""Settings that the study itself fills in → what to do instead."""
WITHIN: Final = 0.381966
"""A place in an interval where whole numbers are rare, so that a setting that takes no others refuses it."""


@dataclass(frozen=True)
class Tuned:
    """One setting of the study.

    Attributes:
        key: As it stands before the `=`, with Hydra's `+` where a person wrote one.
        text: What stood behind it.
        distribution: Optuna's.
    """

    key: str
    text: str
    distribution: Distribution

    @property
    def name(self) -> str:
        """The setting's."""
        return self.key.lstrip("+")

    def override(self, value: Any) -> str:
        """The setting with this value, as a person would write it."""
        stepped = isinstance(self.distribution, FloatDistribution) and self.distribution.step is not None
        return f"{self.key}={value:.12g}" if stepped else f"{self.key}={value}"

    def probes(self) -> list[Any]:
        """Values by which a mistake shows before a trial: every choice; both ends and one place between."""
        found = self.distribution
        if isinstance(found, CategoricalDistribution):
            return list(found.choices)
        if isinstance(found, FloatDistribution) and found.step is None:
            return [found.low, found.low + WITHIN * (found.high - found.low), found.high]
        return [found.low, found.high]


def split(arguments: Sequence[str]) -> tuple[list[Tuned], list[str]]:
    """What is tuned, and every other argument as it came.

    Raises:
        ConfigError: Nothing is tuned, one setting is twice, an override cannot be read, or it names what
            the study fills in.
    """
    parser, tuned, rest = OverridesParser.create(), [], []
    for argument in arguments:
        if argument in ("-m", "--multirun"):
            raise ConfigError(
                "a study runs its own trials", found=argument, expected="plain overrides and distributions",
                remedy="leave it out; `wardround simulate -m` runs every combination",
            )  # fmt: skip
        if argument[:1] == "-" or "=" not in argument:
            rest.append(argument)
            continue
        try:
            override = parser.parse_override(argument)
        except HydraException as error:
            raise ConfigError(
                f"the override {argument!r} cannot be read", found=str(error).strip().split("\n")[0],
                expected=f"a value, or what is tuned: {GRAMMAR}",
                remedy="a logarithmic scale is tag(log,interval(LOW,HIGH))",
            ) from error  # fmt: skip
        name = override.key_or_group
        if name in OWN:
            raise ConfigError(f"a study sets {name} of its trials", found=argument, remedy=OWN[name])
        if override.is_sweep_override():
            tuned.append(Tuned(override.get_key_element(), override.get_value_string(), _read(override)))
        else:
            rest.append(argument)
    if not tuned:
        raise ConfigError(
            "nothing is tuned", found="no distribution among the arguments", expected=GRAMMAR,
            remedy="such as: wardround tune 'local.learning_rate=tag(log,interval(1e-4,1e-2))'",
        )  # fmt: skip
    names = [one.name for one in tuned]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError("a setting is tuned twice", found=twice[0], expected="one distribution each")
    return tuned, rest


def _read(override: Override) -> Distribution:
    """Optuna's distribution for a sweep.

    Raises:
        ConfigError: It is empty, or of a kind that cannot be drawn from.
    """
    sweep, argument = override.value(), override.input_line
    if override.is_hydra_override() or override.is_delete():
        raise _refused(argument, "only settings of a run can be tuned")
    if isinstance(sweep, ChoiceSweep):
        choices = list(override.sweep_string_iterator())
        if len(set(choices)) < len(choices):
            raise _refused(argument, "a choice is there twice")
        return CategoricalDistribution(choices)
    log = "log" in getattr(sweep, "tags", ())
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        if low is None or high is None or not low < high or (log and low <= 0):
            raise _refused(argument, "its ends" + (" (a logarithmic scale begins above 0)" if log else ""))
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(low, high, log=log)
    if isinstance(sweep, RangeSweep):
        return _range(sweep, argument, log=log)
    raise _refused(argument, "what matches a pattern is known only to Hydra: name the choices")


def _range(sweep: RangeSweep, argument: str | None, *, log: bool) -> Distribution:
    """The values that Hydra's range has, without its end."""
    values = list(sweep.range()) if sweep.step and sweep.stop is not None else []
    if not values or sweep.step < 0 or (log and (sweep.step != 1 or values[0] <= 0)):
        raise _refused(argument, "its ends or its step" + (" (a logarithmic one has none)" if log else ""))
    if all(isinstance(value, int) for value in values):
        return IntDistribution(int(values[0]), int(values[-1]), log=log, step=int(sweep.step))
    if log:
        raise _refused(argument, "a logarithmic range of fractions: take tag(log,interval(LOW,HIGH))")
    return FloatDistribution(float(values[0]), float(values[-1]), step=float(sweep.step))


def _refused(argument: str | None, why: str) -> ConfigError:
    return ConfigError(f"{argument!r} cannot be tuned", found=why, expected=GRAMMAR)

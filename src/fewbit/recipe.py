"""Recipe: which layer is quantized how. A named scheme, then ordered rules; the first rule that matches a layer
decides.

In TOML::

    scheme = "W8A8"            # weights 8 bits, activations 8 bits, static
    calibrator = "mse"         # how activation ranges are chosen

    [[rule]]
    match = "lm_head"          # a glob, "re:…" for a regular expression, "@first" or "@last"
    skip = true

    [[rule]]
    types = ["Embedding"]
    weights = "int4/g32/asym"  # a spec; "scheme" replaces weights and activations together
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from fewbit.errors import FewbitError
from fewbit.numbers.formats import get_format
from fewbit.numbers.spec import QSpec

Option = str | int | float | bool

_SCHEME = re.compile(r"W(\d{1,2})A(\d{1,2})((?:-(?:dynamic|asym|tensor|g\d+))*)", re.IGNORECASE)
_FLOAT_ACTIVATIONS = (16, 32)


@dataclass(frozen=True)
class Scheme:
    """What happens to one layer: ``weights`` codes, ``activations`` codes or None for float, static or dynamic."""

    weights: QSpec
    activations: QSpec | None = None
    dynamic: bool = False

    @classmethod
    def parse(cls, name: str) -> Scheme:
        """Read ``W8A8``, ``W8A8-dynamic``, ``W8A16``, ``W4A16-g128``, ``W4A16-g128-asym``, …

        Weights are ``intB/channel/sym`` (``-gN`` groups with float16 scales, ``-tensor`` one scale, ``-asym`` zero
        points); static activations ``uintB/tensor/asym``; dynamic ones ``intB/token/sym``, or ``intB/gN/sym`` where the
        weights have groups of a multiple of 32, which is finer at no cost; A16 and A32 leave activations in float.

        Raises:
            FewbitError: The name is no scheme.
        """
        match = _SCHEME.fullmatch(name.strip())
        if match is None:
            raise FewbitError(f"{name!r} is no scheme; write for example W8A8, W8A8-dynamic, W8A16 or W4A16-g128")
        weight_bits, activation_bits = int(match[1]), int(match[2])
        suffixes = [part.lower() for part in match[3].split("-") if part]
        grain = next((s for s in suffixes if s == "tensor" or re.fullmatch(r"g\d+", s)), "channel")
        symmetry, scale_type = "asym" if "asym" in suffixes else "sym", "/f16" if grain.startswith("g") else ""
        weights = QSpec.parse(f"int{weight_bits}/{grain}/{symmetry}{scale_type}")
        if activation_bits in _FLOAT_ACTIVATIONS:
            if "dynamic" in suffixes:
                raise FewbitError(f"{name!r}: activations of {activation_bits} bits stay float, so nothing is dynamic")
            return cls(weights)
        if activation_bits > 8:
            raise FewbitError(f"{name!r}: activations have 1 to 8 bits, or 16 for float")
        dynamic = "dynamic" in suffixes
        rows = grain if grain.startswith("g") and int(grain[1:]) % 32 == 0 else "token"
        activations = f"int{activation_bits}/{rows}/sym" if dynamic else f"uint{activation_bits}/tensor/asym"
        return cls(weights, QSpec.parse(activations), dynamic)


@dataclass(frozen=True)
class Rule:
    """One rule of a recipe; what it leaves unset comes from the recipe's scheme.

    Attributes:
        match: Layer names: a glob, ``re:`` and a regular expression, ``@first`` or ``@last``.
        types: Layer types (``Conv2d``, ``Linear``, ``Embedding``, …); empty for all.
        skip: Leave the layer in float.
        scheme: A scheme name instead of the recipe's.
        weights: A spec string for the weights.
        activations: A spec string for the activations, ``"float"`` for none.
        optional: The rule may match nothing.
    """

    match: str = "*"
    types: tuple[str, ...] = ()
    skip: bool = False
    scheme: str | None = None
    weights: str | None = None
    activations: str | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        self.apply(Scheme.parse("W8A8"))  # a wrong spec is told now, not when a layer meets it
        if self.match.startswith("re:"):
            try:
                re.compile(self.match[3:])
            except re.error as error:
                raise FewbitError(f"rule {self.match!r}: {error}") from error

    def matches(self, name: str, kind: str, first: str, last: str) -> bool:
        """Whether the rule speaks of this layer."""
        if self.types and kind not in self.types:
            return False
        if self.match in ("@first", "@last"):
            return name == (first if self.match == "@first" else last)
        if self.match.startswith("re:"):
            return re.search(self.match[3:], name) is not None
        return fnmatch.fnmatchcase(name, self.match)

    def apply(self, scheme: Scheme) -> Scheme:
        """The scheme of a layer that the rule matches."""
        if self.scheme is not None:
            scheme = Scheme.parse(self.scheme)
        if self.weights is not None:
            scheme = replace(scheme, weights=QSpec.parse(self.weights))
        if self.activations == "float":
            scheme = replace(scheme, activations=None, dynamic=False)
        elif self.activations is not None:
            scheme = replace(scheme, activations=QSpec.parse(self.activations))
        return scheme


@dataclass(frozen=True)
class LayerPlan:
    """What the recipe decided for one layer: a scheme, or None to leave it in float; and which rule said so."""

    name: str
    kind: str
    scheme: Scheme | None
    reason: str


@dataclass(frozen=True)
class Recipe:
    """A scheme for all layers and rules for some.

    Attributes:
        scheme: The scheme's name.
        weights: A spec string that replaces the scheme's weights.
        activations: The same for the activations.
        calibrator: How static activation ranges are chosen (a file of :mod:`fewbit.calibrate`).
        calibrator_options: Its options.
        weight_calibrator: How weight ranges are chosen; None: ``minmax`` from 8 bits on, ``mse`` below.
        rules: In order; the first that matches a layer decides.
    """

    scheme: str
    weights: str | None = None
    activations: str | None = None
    calibrator: str = "mse"
    calibrator_options: Mapping[str, Option] = field(default_factory=dict)
    weight_calibrator: str | None = None
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        self.default()

    @classmethod
    def from_scheme(cls, scheme: str, **settings: Any) -> Recipe:
        """A recipe without rules, or with ``rules=…`` and the other attributes given by name."""
        return cls(scheme, **settings)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Read the plain form of :meth:`to_dict` or of a TOML file.

        Raises:
            FewbitError: An unknown key or a value of the wrong type; the message names it.
        """
        data = dict(data)
        rules = data.pop("rule", [])
        _check_keys(data, cls, "recipe", also=("rule",), without=("rules",))
        if "scheme" not in data:
            raise FewbitError('a recipe needs a scheme, for example scheme = "W8A8"')
        if not isinstance(rules, list):
            raise FewbitError("a recipe's rules are written as [[rule]] tables")
        return cls(rules=tuple(_rule(rule, i) for i, rule in enumerate(rules, 1)), **data)

    @classmethod
    def from_toml(cls, text: str) -> Recipe:
        """Read TOML.

        Raises:
            FewbitError: The text is no TOML or no recipe.
        """
        try:
            return cls.from_dict(tomlkit.parse(text).unwrap())
        except TOMLKitError as error:
            raise FewbitError(f"the recipe is no valid TOML: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a TOML file.

        Raises:
            FewbitError: The file cannot be read or is no recipe; the message names it.
        """
        try:
            return cls.from_toml(Path(path).read_text(encoding="utf-8"))
        except FewbitError as error:
            raise FewbitError(f"{path}: {error}") from error
        except OSError as error:
            raise FewbitError(f"the recipe {path} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise FewbitError(f"the recipe {path} is no UTF-8 text: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without what is at its default."""
        data = _changed(self)
        if rules := data.pop("rules", None):
            data["rule"] = [_changed(rule) for rule in rules]
        return {"scheme": self.scheme, **data}

    def to_toml(self) -> str:
        """TOML that :meth:`from_toml` reads back to an equal recipe."""
        return tomlkit.dumps(self.to_dict())

    def default(self) -> Scheme:
        """The scheme of layers that no rule matches."""
        return Rule(weights=self.weights, activations=self.activations).apply(Scheme.parse(self.scheme))

    def plan(self, layers: Iterable[tuple[str, str]]) -> list[LayerPlan]:
        """Decide for every layer.

        Args:
            layers: Names and types of the layers that can be quantized, in the model's order.

        Raises:
            FewbitError: There is no layer, or a rule that is not optional matches none.
        """
        layers = list(layers)
        if not layers:
            raise FewbitError("the model has no layer that can be quantized (Linear, Conv, Embedding)")
        ends = (layers[0][0], layers[-1][0])
        for rule in self.rules:
            if not rule.optional and not any(rule.matches(name, kind, *ends) for name, kind in layers):
                raise FewbitError(_matches_nothing(rule, layers))
        return [self._plan_layer(name, kind, ends) for name, kind in layers]

    def _plan_layer(self, name: str, kind: str, ends: tuple[str, str]) -> LayerPlan:
        rule = next((rule for rule in self.rules if rule.matches(name, kind, *ends)), None)
        if rule is not None and rule.skip:
            return LayerPlan(name, kind, None, f"skipped by rule {rule.match!r}")
        scheme = self.default() if rule is None else rule.apply(self.default())
        reason = f"scheme {self.scheme}" if rule is None else f"rule {rule.match!r}"
        if kind == "Embedding":
            scheme = Scheme(scheme.weights)  # an index has nothing to quantize
            if scheme.weights.bits < 8 and (rule is None or (rule.weights is None and rule.scheme is None)):
                scheme, reason = (
                    Scheme(QSpec.parse("int8/channel/sym")),
                    "embeddings keep 8 bits unless a rule says else",
                )
        return LayerPlan(name, kind, _with_integer_product(scheme), reason)


def _with_integer_product(scheme: Scheme) -> Scheme:
    """Ternary weights under integer activations as int2 without its lowest code: the values -1, 0 and 1 all the same,
    but codes that multiply as they are, where those of a codebook are indices."""
    weights = scheme.weights
    if scheme.activations is None or weights.format.name != "ternary" or not weights.symmetric:
        return scheme
    return replace(scheme, weights=replace(weights, format=get_format("int2"), narrow=True))


def as_recipe(recipe: Recipe | str | Path) -> Recipe:
    """A recipe from itself, a scheme's name, or the path of a TOML file."""
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Path) or str(recipe).lower().endswith(".toml"):
        return Recipe.load(recipe)
    if not isinstance(recipe, str):
        raise FewbitError(
            "a recipe is a scheme's name such as 'W8A8', a Recipe or the path of a TOML file, not "
            f"{type(recipe).__name__}"
        )
    return Recipe(recipe)


def _rule(data: object, number: int) -> Rule:
    if not isinstance(data, dict):
        raise FewbitError("a recipe's rules are written as [[rule]] tables")
    _check_keys(data, Rule, f"rule {number}")
    if isinstance(data.get("types"), list):
        data = {**data, "types": tuple(data["types"])}
    return Rule(**data)


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str,),
    "bool": (bool,),
    "tuple[str, ...]": (list,),
    "Mapping[str, Option]": (dict,),
}


_WANTED = {
    "str": "string",
    "str | None": "string",
    "bool": "true or false",
    "tuple[str, ...]": "list of names",
    "Mapping[str, Option]": "table of options",
}


def _check_keys(
    data: Mapping[str, Any], cls: type[Any], where: str, also: tuple[str, ...] = (), without: tuple[str, ...] = ()
) -> None:
    kinds = {f.name: str(f.type) for f in fields(cls) if f.name not in without}
    for key, value in data.items():
        if key not in kinds:
            close = get_close_matches(key, [*kinds, *also], n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join([*kinds, *also])}"
            raise FewbitError(f"{where} has an unknown key {key!r}; {hint}")
        if not isinstance(value, _TYPES[kinds[key]]):
            raise FewbitError(
                f"{where}: {key} has the wrong type {type(value).__name__}: {value!r} is no {_WANTED[kinds[key]]}"
            )
        if isinstance(value, list) and not all(isinstance(item, str) for item in value):
            raise FewbitError(f"{where}: {key} is a list of names, not {value!r}")


def _changed(value: Rule | Recipe) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for f in fields(value):
        current = getattr(value, f.name)
        if current not in (None, {}, ()) and current != f.default:
            changed[f.name] = list(current) if f.name == "types" else current
    return changed


def _matches_nothing(rule: Rule, layers: list[tuple[str, str]]) -> str:
    names = [name for name, _ in layers]
    close = get_close_matches(rule.match, names, n=3, cutoff=0.3) or names[:3]
    kinds = f" of type {' or '.join(rule.types)}" if rule.types else ""
    return (
        f"the rule {rule.match!r}{kinds} matches no layer; layers are called for example {', '.join(close)} "
        f"(write optional = true if that is meant)"
    )

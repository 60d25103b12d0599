"""Recipes: schemes, rules, TOML both ways, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbit.errors import FewbitError
from fewbit.recipe import Recipe, Rule, Scheme, as_recipe

LAYERS = [
    ("stem", "Conv2d"),
    ("body.0.fc", "Linear"),
    ("body.1.fc", "Linear"),
    ("emb", "Embedding"),
    ("lm_head", "Linear"),
]


@pytest.mark.parametrize(
    ("name", "weights", "activations", "dynamic"),
    [
        ("W8A8", "int8/channel/sym", "uint8/tensor/asym", False),
        ("W8A8-dynamic", "int8/channel/sym", "int8/token/sym", True),
        ("W8A16", "int8/channel/sym", None, False),
        ("W4A16-g128", "int4/g128/sym/f16", None, False),
        ("w4a16-g32-asym", "int4/g32/asym/f16", None, False),
        ("W4A8-dynamic-g64", "int4/g64/sym/f16", "int8/g64/sym", True),
        ("W4A8-dynamic-g16", "int4/g16/sym/f16", "int8/token/sym", True),
        ("W2A16", "int2/channel/sym", None, False),
        ("W8A8-tensor", "int8/tensor/sym", "uint8/tensor/asym", False),
        ("W4A4", "int4/channel/sym", "uint4/tensor/asym", False),
    ],
)
def test_named_schemes(name, weights, activations, dynamic):
    scheme = Scheme.parse(name)
    assert str(scheme.weights) == weights
    assert (None if scheme.activations is None else str(scheme.activations)) == activations
    assert scheme.dynamic is dynamic


@pytest.mark.parametrize("name", ["", "W8", "W9A8", "W8A12", "W8A16-dynamic", "int8", "W8A8-g0", "W8A8-foo"])
def test_unknown_schemes_are_refused(name):
    with pytest.raises(FewbitError):
        Scheme.parse(name)


def test_the_first_matching_rule_decides():
    recipe = Recipe(
        "W8A8",
        rules=(Rule("body.0.*", skip=True), Rule("body.*", weights="int4/g32/asym"), Rule("body.1.fc", skip=True)),
    )
    plans = {plan.name: plan for plan in recipe.plan(LAYERS)}
    assert plans["body.0.fc"].scheme is None
    assert "body.0.*" in plans["body.0.fc"].reason
    assert str(plans["body.1.fc"].scheme.weights) == "int4/g32/asym"
    assert str(plans["body.1.fc"].scheme.activations) == "uint8/tensor/asym"
    assert str(plans["stem"].scheme.weights) == "int8/channel/sym"


def test_first_last_types_and_regular_expressions():
    rules = (Rule("@first", scheme="W8A16"), Rule("@last", skip=True), Rule(types=("Linear",), activations="float"))
    plans = {plan.name: plan.scheme for plan in Recipe("W4A8", rules=rules).plan(LAYERS)}
    assert plans["stem"] == Scheme.parse("W8A16")
    assert plans["lm_head"] is None
    assert plans["body.0.fc"].activations is None
    regex = Recipe("W8A8", rules=(Rule(r"re:body\.[01]\.", skip=True),)).plan(LAYERS)
    assert [plan.name for plan in regex if plan.scheme is None] == ["body.0.fc", "body.1.fc"]


def test_embeddings_have_no_activations_and_keep_eight_bits():
    plans = {plan.name: plan.scheme for plan in Recipe("W4A8-dynamic-g32").plan(LAYERS)}
    assert plans["emb"] == Scheme.parse("W8A16")
    asked = Recipe("W4A8", rules=(Rule("emb", weights="int4/g32/sym"),)).plan(LAYERS)
    assert next(str(p.scheme.weights) for p in asked if p.name == "emb") == "int4/g32/sym"


def test_a_rule_that_matches_nothing_is_told_with_names_that_are_near():
    with pytest.raises(FewbitError, match=r"'lm_haed' matches no layer.*lm_head"):
        Recipe("W8A8", rules=(Rule("lm_haed", skip=True),)).plan(LAYERS)
    Recipe("W8A8", rules=(Rule("lm_haed", skip=True, optional=True),)).plan(LAYERS)


def test_a_model_without_layers_is_told():
    with pytest.raises(FewbitError, match="no layer that can be quantized"):
        Recipe("W8A8").plan([])


rules = st.builds(
    Rule,
    match=st.sampled_from(["*", "lm_head", "re:^a.b", "@first", 'weird "name" \\ with\ttabs']),
    types=st.sampled_from([(), ("Linear",), ("Conv2d", "Embedding")]),
    skip=st.booleans(),
    scheme=st.sampled_from([None, "W8A8", "W4A16-g128"]),
    weights=st.sampled_from([None, "int4/g128/asym", "fp8_e4m3/channel/sym"]),
    activations=st.sampled_from([None, "float", "int8/tensor/sym"]),
    optional=st.booleans(),
)
recipes = st.builds(
    Recipe,
    scheme=st.sampled_from(["W8A8", "W8A8-dynamic", "W4A16-g32-asym"]),
    weights=st.sampled_from([None, "int8/tensor/sym"]),
    activations=st.sampled_from([None, "int8/tensor/sym"]),
    calibrator=st.sampled_from(["mse", "percentile"]),
    calibrator_options=st.dictionaries(st.sampled_from(["p", "bins"]), st.integers(1, 10**6) | st.floats(0, 100)),
    weight_calibrator=st.sampled_from([None, "minmax"]),
    rules=st.lists(rules, max_size=3).map(tuple),
)


@given(recipes)
def test_toml_both_ways(recipe):
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scheme = 3", "wrong type int: 3 is no string"),
        ("", "needs a scheme"),
        ("scheme = 'W8A8'\ncalibator = 'mse'", "did you mean 'calibrator'"),
        ("scheme = 'W8A8'\n[[rule]]\nmatch = 'a'\nweight = 'int8/channel/sym'", "rule 1 has an unknown key 'weight'"),
        ("scheme = 'W8A8'\n[[rule]]\nmatch = 're:('", "re:"),
        ("scheme = 'W8A8'\n[[rule]]\nweights = 'int8'", "is no spec"),
        ("scheme = 'W8A8'\n[[rule]]\ntypes = [3]", "list of names"),
        ("scheme = 'W8A8'\nrule = 3", r"\[\[rule\]\]"),
        ("scheme = ", "no valid TOML"),
    ],
)
def test_wrong_files_get_one_clear_sentence(text, message, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(FewbitError, match=message) as error:
        as_recipe(str(path))
    assert "recipe.toml" in str(error.value)


def test_as_recipe_takes_names_paths_and_recipes(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(Recipe("W4A16-g32").to_toml())
    assert as_recipe(path) == as_recipe("W4A16-g32") == as_recipe(Recipe("W4A16-g32"))
    with pytest.raises(FewbitError, match=r"missing\.toml cannot be read"):
        as_recipe("missing.toml")

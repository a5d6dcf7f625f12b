"""Recipes as TOML: what is refused, what is inherited, what is written."""

import re

import pytest

from cnn_extract.train.presets import find_recipe, preset_names, preset_text
from cnn_extract.train.recipe import Recipe
from cnn_extract.train.toml import parse_recipe, read_recipe, to_toml, with_settings

PRESETS = {
    "imet-1st", "imet-2nd", "imet-lopuhin", "imet-brodt", "imet-9th", "imet-10th", "herbarium",
    "recursion", "inclusive",
}  # fmt: skip


def parsed(text):
    return parse_recipe(text, name="mine", where="mine.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[model]\nhaed = 'mlp'",
            r"mine.toml: \[model\] has no setting 'haed'; did you mean 'head'",
        ),
        ("[modle]\n", "the top level has no setting 'modle'; did you mean 'model'"),
        ("[[stage]]\nlearning = 1", r"\[\[stage\]\] 1 has no setting 'learning'"),
        ("[model]\nhead = 'cosin'", r"\[model\] head must be one of linear, mlp, cosine"),
        ("[input]\nsize = 'big'", r"\[input\] size must be a whole number; got 'big'"),
        ("[input]\nhflip = 2.0", r"\[input\] hflip must be from 0 to 1; got 2.0"),
        ("[input]\narea = [0.9, 0.1]", r"\[input\] area must be two rising numbers"),
        ("[batch]\nema = true", r"\[batch\] ema must be a number; got True"),
        ("[model]\nper_group = 1", r"\[model\] per_group must be true or false; got 1"),
        ("stage = 3", r"write each stage as a table \[\[stage\]\]"),
        ("[[stage]]\ndrops = [1.5]", "drops must be a list, each a whole number"),
        ("[input]\nsizes = 3", "sizes must be a table"),
        ("a = ", "mine.toml is no TOML file"),
        ("[[stage]]\nloss = 'am-softmax'", "needs .model. head = 'cosine'"),
        ("[[stage]]\nschedule = 'drops'", "needs the epochs"),
        ("[[stage]]\ndomain = 'each'\n[[stage]]\ndomain = 'all'", "all stages are of the copies"),
        ("[[stage]]\n[[stage]]\nloss = 'cross-entropy'", "do not go together"),
        ("[distill]\nweight = 0.7\n[[stage]]\nloss = 'cross-entropy'", "loss of single classes"),
        ("[batch]\nsize = 8\neffective = 4", "effective must be at least size = 8; got 4"),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(text, message):
    """A misspelt setting is ignored, and training does something else for days."""
    with pytest.raises(ValueError, match=message):
        parsed(text)


def test_a_stage_keeps_what_it_does_not_say():
    """Settings of a stage fall back to defaults in the next one."""
    recipe = parsed(
        "[[stage]]\nname = 'one'\nlr = 0.5\nloss = 'focal'\ntrain = 'head'\n"
        "[[stage]]\ntrain = 'all'\n"
    )
    one, two = recipe.stage
    assert (two.lr, two.loss, two.train, two.name) == (0.5, "focal", "all", "")
    assert one.train == "head"


def test_each_model_has_its_own_size():
    """A2: PNASNet gets 320 pixels like the others."""
    recipe = parsed("[model]\nname = 'senet154'\n[input]\nsize = 320\nsizes = {pnasnet5large=331}")
    assert recipe.size == 320
    assert with_settings(recipe, ["model.name=pnasnet5large"]).size == 331
    assert parsed("").size is None


def test_single_settings_change_as_in_toml():
    """--set changes another setting, or text and lists cannot be given."""
    recipe = with_settings(
        Recipe("x", stage=parsed("[[stage]]\n[[stage]]\n").stage),
        ["folds=3", "input.area=[0.2, 0.5]", "stage.lr=0.25", "model.name=resnet50"],
    )
    assert recipe.folds == 3
    assert recipe.input.area == (0.2, 0.5)
    assert [stage.lr for stage in recipe.stage] == [0.25, 0.25]
    assert recipe.model.name == "resnet50"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("input.sise=3", r"\[input\] has no setting 'sise'; did you mean 'size'"),
        ("inputs.size=3", "a recipe has no setting 'inputs'; did you mean 'input'"),
        ("input.size", "--set must be TABLE.KEY=VALUE"),
        ("batch.size=0", r"\[batch\] size must be at least 1; got 0"),
        ("batch.effective=1", "effective must be at least size"),
    ],
)
def test_a_wrong_change_is_refused(setting, message):
    """--set of a setting that is not there does nothing."""
    with pytest.raises(ValueError, match=message):
        with_settings(Recipe("x"), [setting])


def test_the_presets_are_all_there():
    """A published system has no recipe."""
    assert set(preset_names()) == PRESETS


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_read_and_written_back(name, tmp_path):
    """A preset has a misspelt setting, or the recipe kept with a run is another one."""
    recipe = find_recipe(name)
    path = tmp_path / f"{name}.toml"
    path.write_text(to_toml(recipe))
    assert read_recipe(path) == recipe
    assert recipe.about


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_each_setting_of_a_preset_says_where_it_comes_from(name):
    """Nobody can tell what the winners did from what we chose."""
    lines = preset_text(name).splitlines()
    settings = [line for line in lines if re.match(r"(?!about|name = \"[a-z0-9-]+\"$)\w+ = ", line)]
    for line in settings:
        assert re.search(r"  # ([A-E]\d+|ours)$", line), line
    assert sum("# ours" not in line for line in settings) > 3


def test_an_unknown_preset_lists_those_there_are():
    """A misspelt preset ends in a traceback."""
    with pytest.raises(ValueError, match=r"no recipe 'imet-3rd'.*imet-1st, imet-2nd"):
        find_recipe("imet-3rd")
    with pytest.raises(FileNotFoundError):
        find_recipe("mine.toml")

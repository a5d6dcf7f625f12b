"""Boosters' texts are checked before a C++ reader trusts what they say of themselves."""

import copy
import json

import pytest

from stacker._booster_text import check_lightgbm, check_xgboost

# Two splits: column 0 by a number, column 1 by a set of categories.
LIGHTGBM = """tree
version=v4
num_class=1
num_tree_per_iteration=1
max_feature_idx=1
feature_names=a b
tree_sizes=400

Tree=0
num_leaves=3
num_cat=1
split_feature=0 1
threshold=0.5 0
decision_type=2 1
left_child=1 -1
right_child=-2 -3
leaf_value=0.1 0.2 0.3
cat_boundaries=0 1
cat_threshold=5
is_linear=0

end of trees
"""
NODES = {
    "left_children": [1, -1, -1],
    "right_children": [2, -1, -1],
    "split_indices": [0, 0, 0],
    "split_type": [0, 0, 0],
    "categories": [],
    "tree_param": {"num_nodes": "3"},
}
LATER = "a node comes before its parent"
ORPHAN = "a node is the child of none, or of two"


def xgboost_text(**changes):
    """Text of a booster of one tree with three nodes."""
    from stacker._booster_text import PER_NODE

    tree = {key: [0, 0, 0] for key in PER_NODE} | copy.deepcopy(NODES) | changes
    model = {"model": {"trees": [tree]}}
    learner = {"learner_model_param": {"num_feature": "2"}, "gradient_booster": model}
    return json.dumps({"learner": learner})


def test_good_texts_pass_and_lose_the_sizes_that_a_reader_would_trust():
    """A check that refuses every booster refuses the crafted ones too."""
    assert check_lightgbm(LIGHTGBM) == LIGHTGBM.replace("tree_sizes=400\n", "")
    assert check_xgboost(xgboost_text()) == xgboost_text()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("tree\nversion", "treasure\nversion", "no text of LightGBM: it does not begin with"),
        ("end of trees", "", "is cut off: it has no 'end of trees'"),
        ("feature_names=a b", "feature_names=a", "names other columns than the 2 it reads"),
        ("max_feature_idx=1", "max_feature_idx=-1", "names other columns than the 0 it reads"),
        ("num_class=1", "num_class=3", "is of several classes; ours are of one"),
        ("iteration=1", "iteration=2", "is of several classes; ours are of one"),
        ("max_feature_idx=1\n", "", "the model's booster lacks 'max_feature_idx'"),
        ("num_leaves=3", "num_leaves=0", "damaged: tree 0: a tree must have a leaf; it has 0"),
        ("num_leaves=3", "num_leaves=2000000000", "'leaf_value' holds 3 numbers, not 2000000000"),
        ("is_linear=0", "is_linear=1", "its leaves are linear; ours are constant"),
        ("split_feature=0 1", "split_feature=0 9", "it splits column 9 of 2"),
        ("split_feature=0 1", "split_feature=-7 1", "it splits column"),
        ("left_child=1 -1", "left_child=0 -1", LATER),
        ("left_child=1 -1", "left_child=5 -1", ORPHAN),
        ("right_child=-2 -3", "right_child=-1 -3", "a leaf is the child of none, or of two"),
        ("cat_boundaries=0 1", "cat_boundaries=0 0", "its sets of categories are none"),
        ("threshold=0.5 0", "threshold=0.5 1", "a set of categories that is not there"),
        ("cat_threshold=5", "cat_threshold=5 6", "'cat_threshold' holds 2 numbers, not 1"),
    ],
)
def test_a_lightgbm_tree_that_cannot_be_walked_is_refused(before, after, message):
    """LightGBM walks it for ever, or reads another process's memory."""
    assert before in LIGHTGBM
    with pytest.raises(ValueError, match=message):
        check_lightgbm(LIGHTGBM.replace(before, after))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split_indices": [0, 0]}, r"a tree of 3 nodes holds \[2, 3\] numbers a node"),
        ({"tree_param": {"num_nodes": "9"}}, r"a tree of 9 nodes holds \[3\] numbers a node"),
        ({"right_children": [-1, -1, -1]}, "a node has one child"),
        ({"left_children": [2, -1, -1]}, ORPHAN),
        ({"left_children": [-1, 1, -1], "right_children": [-1, 2, -1]}, LATER),
        ({"split_indices": [0, 2, 0]}, "it splits column 2 of 2"),
        ({"categories": [1]}, "a tree splits by categories; ours do not"),
        ({"split_type": [0, 1, 0]}, "a tree splits by categories; ours do not"),
        ({"tree_param": {}}, "no JSON of XGBoost, or damaged: KeyError 'num_nodes'"),
    ],
)
def test_an_xgboost_tree_that_cannot_be_walked_is_refused(changes, message):
    """XGBoost walks it for ever, or reads another process's memory."""
    with pytest.raises(ValueError, match=message):
        check_xgboost(xgboost_text(**changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "it is nested too deeply"),
        ('{"learner": ' * 100_000, "no JSON of XGBoost, or damaged: RecursionError"),
        ("{}", "no JSON of XGBoost, or damaged: KeyError 'learner'"),
        ("no", "no JSON of XGBoost, or damaged: JSONDecodeError"),
    ],
)
def test_what_is_no_booster_of_xgboost_is_refused(text, message):
    """XGBoost's own reader of JSON calls itself until the stack ends."""
    with pytest.raises(ValueError, match=message):
        check_xgboost(text)

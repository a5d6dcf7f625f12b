"""The peers: from training images to probabilities of new ones, each as its own docs advise.

A method takes the training and the new images (`Part`) and returns probabilities of the new ones,
(n, classes). Its body is what a user would write, and what "lines" in the table counts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from data import Part

Method = Callable[[Part, Part], np.ndarray]


@dataclass(frozen=True)
class Peer:
    """A method, its name in the table, and how many outer folds an hour has room for."""

    method: Method
    name: str
    folds: int = 5
    top: bool = False  # only on the most frequent classes


def mean(train: Part, new: Part) -> np.ndarray:
    return new.probs.mean(axis=1)


def multi_output(train: Part, new: Part) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression
    from sklearn.multioutput import MultiOutputClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    one = make_pipeline(StandardScaler(), LogisticRegression(C=0.003, max_iter=200))
    fitted = MultiOutputClassifier(one).fit(train.mean_columns, train.labels)
    return np.stack([p[:, 1] for p in fitted.predict_proba(new.mean_columns)], axis=1)


def classifier_chain(train: Part, new: Part) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression
    from sklearn.multioutput import ClassifierChain
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    one = make_pipeline(StandardScaler(), LogisticRegression(C=0.003, max_iter=200))
    order = np.argsort(-train.labels.sum(axis=0)).tolist()
    chain = ClassifierChain(one, order=order)
    return chain.fit(train.mean_columns, train.labels).predict_proba(new.mean_columns)


def lightgbm_per_class(train: Part, new: Part) -> np.ndarray:
    import lightgbm as lgb

    params = {"objective": "binary", "num_leaves": 7, "learning_rate": 0.1, "verbosity": -1}
    params |= {"feature_fraction": 0.3, "min_data_in_leaf": 20, "num_threads": 1}
    columns, out = train.mean_columns, []
    for c in range(train.labels.shape[1]):
        own = np.concatenate([train.probs[:, :, c], columns], axis=1)
        fitted = lgb.train(params, lgb.Dataset(own, train.labels[:, c]), num_boost_round=40)
        out.append(fitted.predict(np.concatenate([new.probs[:, :, c], new.mean_columns], axis=1)))
    return np.stack(out, axis=1)


def catboost(train: Part, new: Part) -> np.ndarray:
    from catboost import CatBoostClassifier

    model = CatBoostClassifier(
        loss_function="MultiLogloss", iterations=150, depth=4, thread_count=1, verbose=False
    )
    model.fit(train.mean_columns, train.labels)
    return model.predict_proba(new.mean_columns)


def xgboost_multi_output(train: Part, new: Part) -> np.ndarray:
    from xgboost import XGBClassifier

    model = XGBClassifier(
        multi_strategy="multi_output_tree",
        n_estimators=150,
        max_depth=6,
        learning_rate=0.1,
        n_jobs=1,
    )
    model.fit(train.mean_columns, train.labels)
    return model.predict_proba(new.mean_columns)


def naive_pairs(train: Part, new: Part) -> np.ndarray:
    import lightgbm as lgb
    import pandas as pd

    def table(part: Part) -> pd.DataFrame:
        n_models, frames = part.probs.shape[1], []
        for i in range(len(part)):
            top = np.argsort(-part.probs[i].mean(axis=0))[:50]
            frame = pd.DataFrame({f"p{m}": part.probs[i, m, top] for m in range(n_models)})
            frame["image"], frame["class"], frame["label"] = i, top, part.labels[i, top]
            frames.append(frame)
        rows = pd.concat(frames, ignore_index=True)
        names = [name for name in rows if name.startswith("p")]
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                rows[f"{a}+{b}"] = rows[a] + rows[b]
                rows[f"{a}*{b}"] = rows[a] * rows[b]
                rows[f"{a}/{b}"] = rows[a] / (rows[b] + 1e-6)
        if part.stack.image_stats is not None:
            stats = part.stack.image_stats.reset_index(drop=True)
            rows = rows.merge(stats, left_on="image", right_index=True)
        return rows

    rows, wanted = table(train), table(new)
    columns = [name for name in rows if name not in ("image", "class", "label")]
    model = lgb.LGBMClassifier(
        n_estimators=300, learning_rate=0.05, num_leaves=63, n_jobs=1, verbosity=-1
    )
    model.fit(rows[columns], rows["label"])
    out = np.zeros(new.labels.shape, np.float32)
    out[wanted["image"], wanted["class"]] = model.predict_proba(wanted[columns])[:, 1]
    return out


def autogluon(train: Part, new: Part) -> np.ndarray:
    import tempfile

    import pandas as pd
    from autogluon.tabular import TabularPredictor

    out = []
    for c in range(train.labels.shape[1]):
        frame, wanted = pd.DataFrame(train.columns), pd.DataFrame(new.columns)
        frame["label"] = train.labels[:, c]
        with tempfile.TemporaryDirectory() as folder:
            predictor = TabularPredictor("label", path=folder, eval_metric="log_loss", verbosity=0)
            predictor.fit(frame, presets="medium_quality", time_limit=15, num_cpus=1)
            out.append(predictor.predict_proba(wanted)[1].to_numpy())
    return np.stack(out, axis=1)


def _one_model(model: int, n_classes: int) -> object:
    """Logistic regression on one model's columns, as a level-one estimator."""
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    own = slice(model * n_classes, (model + 1) * n_classes)
    picked = ColumnTransformer([("own", StandardScaler(), own)])
    return make_pipeline(picked, LogisticRegression(C=0.03, max_iter=300))


def sklearn_stacking(train: Part, new: Part) -> np.ndarray:
    from sklearn.ensemble import StackingClassifier
    from sklearn.linear_model import LogisticRegression

    n_models, n_classes = train.probs.shape[1:]
    models = [(f"model{m}", _one_model(m, n_classes)) for m in range(n_models)]
    stack = StackingClassifier(models, LogisticRegression(), cv=5, n_jobs=1)
    found = [stack.fit(train.columns, y).predict_proba(new.columns)[:, 1] for y in train.labels.T]
    return np.stack(found, axis=1)


def mlxtend_stacking(train: Part, new: Part) -> np.ndarray:
    from mlxtend.classifier import StackingCVClassifier
    from sklearn.linear_model import LogisticRegression

    n_models, n_classes = train.probs.shape[1:]
    models = [_one_model(m, n_classes) for m in range(n_models)]
    stack = StackingCVClassifier(
        models, LogisticRegression(), use_probas=True, cv=5, random_state=0, n_jobs=1
    )
    found = [stack.fit(train.columns, y).predict_proba(new.columns)[:, 1] for y in train.labels.T]
    return np.stack(found, axis=1)


PEERS = {
    "mean": Peer(mean, "mean of the models"),
    "multi_output": Peer(multi_output, "scikit-learn MultiOutputClassifier(LogisticRegression)"),
    "classifier_chain": Peer(classifier_chain, "scikit-learn ClassifierChain", folds=1),
    "lightgbm_per_class": Peer(lightgbm_per_class, "LightGBM, one model a class", folds=1),
    "catboost": Peer(catboost, "CatBoost MultiLogloss", folds=1),
    "xgboost": Peer(xgboost_multi_output, "XGBoost multi_output_tree", folds=1),
    "naive_pairs": Peer(naive_pairs, "1st place's pair rows, plain pandas", folds=5),
    "autogluon": Peer(autogluon, "AutoGluon, one predictor a class", folds=1, top=True),
    "sklearn_stacking": Peer(
        sklearn_stacking, "scikit-learn StackingClassifier", folds=1, top=True
    ),
    "mlxtend": Peer(mlxtend_stacking, "mlxtend StackingCVClassifier", folds=1, top=True),
}

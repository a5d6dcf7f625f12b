"""The peers: from training images to probabilities of new ones, each as its own docs advise.

A method takes the training and the new images (`Part`) and returns probabilities of the new ones,
(n, classes); a peer that bags returns its out-of-fold ones of the training images too. Its body is
what a user would write, and what "lines" in the table counts, with that of the helpers which
`PEERS` names. What a peer must be told (C, rounds) is chosen by cross-validation over the folds of
its training images, never on new ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from data import Part

# Trees shared by all classes need many rounds; early stopping ends them sooner where it can.
ROUNDS = 300

# Probabilities of the new images and, where the peer has them, out of fold of the training images.
Found = np.ndarray | tuple[np.ndarray, np.ndarray]
Method = Callable[[Part, Part], Found]


@dataclass(frozen=True)
class Peer:
    """A method, its name in the table, whether an hour has room for all folds, its helpers."""

    method: Method
    name: str
    slow: bool = False
    top: bool = False  # only on the most frequent classes
    helpers: tuple[Callable[..., Any], ...] = ()


def mean(train: Part, new: Part) -> np.ndarray:
    return new.probs.mean(axis=1)


def logistic(C: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=200))


def best_c(train: Part, columns: Callable[[int], np.ndarray]) -> float:
    from sklearn.metrics import log_loss
    from sklearn.model_selection import PredefinedSplit, cross_val_predict

    # One C for all classes: a class's own choice was worse, most have too few positives for it.
    common = np.flatnonzero(train.labels.sum(axis=0) >= 30)
    common, folds = common[:: max(1, len(common) // 40)], PredefinedSplit(train.fold)

    def loss(C: float) -> float:
        total = 0.0
        for c in common:
            y = train.labels[:, c]
            p = cross_val_predict(logistic(C), columns(c), y, cv=folds, method="predict_proba")
            total += log_loss(y, p)
        return total

    return min([0.001, 0.003, 0.01, 0.03, 0.1, 0.3], key=loss)


def logistic_per_class(train: Part, new: Part) -> np.ndarray:
    C, out = best_c(train, train.own), []
    for c in range(train.labels.shape[1]):
        model = logistic(C).fit(train.own(c), train.labels[:, c])
        out.append(model.predict_proba(new.own(c))[:, 1])
    return np.stack(out, axis=1)


def multi_output(train: Part, new: Part) -> np.ndarray:
    from sklearn.multioutput import MultiOutputClassifier

    C = best_c(train, lambda c: train.shared)
    fitted = MultiOutputClassifier(logistic(C)).fit(train.shared, train.labels)
    return np.stack([p[:, 1] for p in fitted.predict_proba(new.shared)], axis=1)


def classifier_chain(train: Part, new: Part) -> np.ndarray:
    from sklearn.multioutput import ClassifierChain

    # cv: later classes learn from predictions of earlier ones, as they will meet them.
    order = np.argsort(-train.labels.sum(axis=0)).tolist()
    chain = ClassifierChain(logistic(best_c(train, lambda c: train.shared)), order=order, cv=3)
    return chain.fit(train.shared, train.labels).predict_proba(new.shared)


def lightgbm_per_class(train: Part, new: Part) -> np.ndarray:
    import lightgbm as lgb

    params = {"objective": "binary", "num_leaves": 4, "learning_rate": 0.05, "num_threads": 1}
    params |= {"min_data_in_leaf": 5, "lambda_l2": 1, "verbosity": -1}
    classes, last, curves = range(train.labels.shape[1]), train.fold == train.fold.max(), []
    for c in classes:
        X, y, curve = train.own(c), train.labels[:, c], {}
        rest = lgb.Dataset(X[~last], y[~last])
        held = rest.create_valid(X[last], y[last])
        lgb.train(params, rest, 200, [held], callbacks=[lgb.record_evaluation(curve)])
        curves.append(curve["valid_0"]["binary_logloss"])
    # One number of rounds: the held-out fold has too few positives of most classes for their own.
    rounds = int(np.argmin(np.sum(curves, axis=0))) + 1
    fitted = [
        lgb.train(params, lgb.Dataset(train.own(c), train.labels[:, c]), rounds) for c in classes
    ]
    return np.stack([model.predict(new.own(c)) for c, model in enumerate(fitted)], axis=1)


def catboost(train: Part, new: Part) -> np.ndarray:
    from catboost import CatBoostClassifier

    last = train.fold == train.fold.max()
    model = CatBoostClassifier(
        loss_function="MultiLogloss",
        iterations=ROUNDS,
        learning_rate=0.1,
        depth=4,
        early_stopping_rounds=20,
        thread_count=1,
        verbose=False,
    )
    held = (train.shared[last], train.labels[last])
    model.fit(train.shared[~last], train.labels[~last], eval_set=held)
    return model.predict_proba(new.shared)


def xgboost_multi_output(train: Part, new: Part) -> np.ndarray:
    from xgboost import XGBClassifier

    last = train.fold == train.fold.max()
    model = XGBClassifier(
        multi_strategy="multi_output_tree",
        n_estimators=ROUNDS,
        learning_rate=0.1,
        max_depth=4,
        max_bin=32,
        colsample_bynode=0.1,
        early_stopping_rounds=20,
        n_jobs=1,
    )
    held = [(train.shared[last], train.labels[last])]
    model.fit(train.shared[~last], train.labels[~last], eval_set=held, verbose=False)
    return model.predict_proba(new.shared)


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
    last = (train.fold == train.fold.max())[rows["image"]]
    params = {"learning_rate": 0.1, "num_leaves": 31, "n_jobs": 1, "verbosity": -1}
    search = lgb.LGBMClassifier(n_estimators=300, **params)
    search.fit(
        rows.loc[~last, columns],
        rows.loc[~last, "label"],
        eval_set=[(rows.loc[last, columns], rows.loc[last, "label"])],
        callbacks=[lgb.early_stopping(20, verbose=False)],
    )
    model = lgb.LGBMClassifier(n_estimators=search.best_iteration_, **params)
    model.fit(rows[columns], rows["label"])
    out = np.zeros(new.labels.shape, np.float32)
    out[wanted["image"], wanted["class"]] = model.predict_proba(wanted[columns])[:, 1]
    return out


def autogluon(train: Part, new: Part) -> tuple[np.ndarray, np.ndarray]:
    import tempfile

    import pandas as pd
    from autogluon.tabular import TabularPredictor

    found, held_out = [], []
    # No preset fits an hour of one core; a time limit would make the result the machine's.
    models = {"GBM": [{"extra_trees": True}], "RF": {}, "LR": {}}
    for y in train.labels.T:
        frame = pd.DataFrame(train.columns).assign(label=y)
        with tempfile.TemporaryDirectory() as folder:
            predictor = TabularPredictor("label", path=folder, eval_metric="log_loss", verbosity=0)
            predictor.fit(frame, hyperparameters=models, num_bag_folds=4, num_cpus=1)
            held_out.append(predictor.predict_proba_oof()[1].to_numpy())
            found.append(predictor.predict_proba(pd.DataFrame(new.columns))[1].to_numpy())
    return np.stack(found, axis=1), np.stack(held_out, axis=1)


def model_columns(part: Part, model: int) -> slice:
    n_classes = part.probs.shape[2]
    return slice(model * n_classes, (model + 1) * n_classes)


def level_one(train: Part) -> list[Any]:
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import make_pipeline

    models = [model_columns(train, m) for m in range(train.probs.shape[1])]
    C = best_c(train, lambda c: train.columns[:, models[0]])
    picks = [ColumnTransformer([("own", "passthrough", own)]) for own in models]
    return [make_pipeline(pick, logistic(C)) for pick in picks]


def sklearn_stacking(train: Part, new: Part) -> np.ndarray:
    from sklearn.ensemble import StackingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit

    models = [(f"model{m}", model) for m, model in enumerate(level_one(train))]
    stack = StackingClassifier(models, LogisticRegression(), cv=PredefinedSplit(train.fold))
    found = [stack.fit(train.columns, y).predict_proba(new.columns)[:, 1] for y in train.labels.T]
    return np.stack(found, axis=1)


def mlxtend_stacking(train: Part, new: Part) -> np.ndarray:
    from mlxtend.classifier import StackingCVClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit

    stack = StackingCVClassifier(
        level_one(train),
        LogisticRegression(),
        use_probas=True,
        drop_proba_col="first",
        cv=PredefinedSplit(train.fold),
    )
    found = [stack.fit(train.columns, y).predict_proba(new.columns)[:, 1] for y in train.labels.T]
    return np.stack(found, axis=1)


LINEAR = (logistic, best_c)
STACKED = (*LINEAR, model_columns, level_one)
PEERS = {
    "mean": Peer(mean, "mean of the models"),
    "logistic_per_class": Peer(
        logistic_per_class, "scikit-learn LogisticRegression, a class's own columns", helpers=LINEAR
    ),
    "multi_output": Peer(
        multi_output, "scikit-learn MultiOutputClassifier(LogisticRegression)", helpers=LINEAR
    ),
    "classifier_chain": Peer(
        classifier_chain, "scikit-learn ClassifierChain", slow=True, helpers=LINEAR
    ),
    "lightgbm_per_class": Peer(lightgbm_per_class, "LightGBM, one model a class"),
    "catboost": Peer(catboost, "CatBoost MultiLogloss", slow=True),
    "xgboost": Peer(xgboost_multi_output, "XGBoost multi_output_tree", slow=True),
    "naive_pairs": Peer(naive_pairs, "1st place's pair rows, plain pandas"),
    "autogluon": Peer(autogluon, "AutoGluon, one predictor a class", slow=True, top=True),
    "sklearn_stacking": Peer(
        sklearn_stacking, "scikit-learn StackingClassifier", slow=True, top=True, helpers=STACKED
    ),
    "mlxtend": Peer(
        mlxtend_stacking, "mlxtend StackingCVClassifier", slow=True, top=True, helpers=STACKED
    ),
}

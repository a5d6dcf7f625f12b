"""What every peer is given: the training images and the new ones, and views of them as columns.

Peers read the models' out-of-fold probabilities, as their users do; pairstack is given the same
stack and reads whatever else it holds (embeddings, ImageNet logits, image statistics).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from features import Stack

TOP = 20


@dataclass(frozen=True)
class Part:
    """Some images: their stack, labels (n, classes) and, per image, split group and outer fold."""

    stack: Stack
    labels: np.ndarray
    groups: np.ndarray
    fold: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: np.ndarray) -> "Part":
        return Part(self.stack[rows], self.labels[rows], self.groups[rows], self.fold[rows])

    @cached_property
    def probs(self) -> np.ndarray:
        """Probabilities, float32 (n, models, classes)."""
        values = self.stack.probabilities.values()
        return np.stack([np.asarray(p, np.float32) for p in values], axis=1)

    @cached_property
    def columns(self) -> np.ndarray:
        """Logit of every model's probability of every class, float32 (n, models * classes)."""
        clipped = np.clip(self.probs, 1e-4, 1 - 1e-4)
        return np.log(clipped / (1 - clipped)).reshape(len(self), -1)

    @cached_property
    def mean_columns(self) -> np.ndarray:
        """Mean logit of every class, float32 (n, classes)."""
        return self.columns.reshape(self.probs.shape).mean(axis=1)

    def own(self, c: int) -> np.ndarray:
        """Logit of every model's probability of one class, float32 (n, models)."""
        return self.columns.reshape(self.probs.shape)[:, :, c]

    @property
    def shared(self) -> np.ndarray:
        """Columns for models of all classes: `columns`, or their means where these are many."""
        # Six times 488 columns for 4,000 images gave no peer more than their means, and cost more.
        return self.columns if self.columns.shape[1] < 1000 else self.mean_columns

    def bare(self) -> "Part":
        """Only the models' probabilities: no embeddings, ImageNet logits or statistics."""
        stack = Stack(
            self.stack.probabilities, image_ids=self.stack.image_ids, classes=self.stack.classes
        )
        return Part(stack, self.labels, self.groups, self.fold)

    def frequent(self) -> "Part":
        """Only the classes with most positives."""
        return self.only(np.sort(np.argsort(-self.labels.sum(axis=0), kind="stable")[:TOP]))

    def only(self, classes: np.ndarray) -> "Part":
        """Only the classes at these positions."""
        stack = Stack(
            {name: values[:, classes] for name, values in self.stack.probabilities.items()},
            image_ids=self.stack.image_ids,
            classes=self.stack.classes[classes],
            embeddings=self.stack.embeddings,
            imagenet_logits=self.stack.imagenet_logits,
            image_stats=self.stack.image_stats,
        )
        return Part(stack, self.labels[:, classes], self.groups, self.fold)


def read(data: str) -> Part:
    """Out-of-fold predictions of a file, or as many synthetic images of iMet's shape."""
    if data.isdigit():
        from synthetic import imet

        problem = imet(int(data))
        return Part(problem.stack, problem.labels.toarray(), np.arange(int(data)), problem.fold)
    from nested_openclipart import read as read_file

    stack, labels, fold, groups = read_file(data)
    return Part(stack, labels.toarray(), groups, fold)

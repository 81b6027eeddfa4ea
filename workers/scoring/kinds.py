"""Whether a short text is of one kind or the other: an embedding for what it means, n-grams for how it is put."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

C = 10.0
Embed = Callable[[list[str]], np.ndarray]


class KindClassifier:
    """A logistic regression, whose probabilities are calibrated by what it minimises."""

    def __init__(self, embed: Embed) -> None:
        """embed(texts) gives [texts, d], of length 1."""
        self.embed = embed
        self.words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        self.parts = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, min_df=2)
        self.model = LogisticRegression(C=C, solver="liblinear", max_iter=1000)

    def fit(self, texts: Sequence[str], positive: Sequence[bool]) -> "KindClassifier":
        rows = [self.words.fit_transform(texts), self.parts.fit_transform(texts), csr_matrix(self.embed(list(texts)))]
        self.model.fit(hstack(rows).tocsr(), positive)
        return self

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """[texts], of being positive."""
        rows = [self.words.transform(texts), self.parts.transform(texts), csr_matrix(self.embed(list(texts)))]
        return np.asarray(self.model.predict_proba(hstack(rows).tocsr())[:, 1])

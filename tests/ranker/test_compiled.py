import importlib
import pkgutil
import subprocess
import sys
import textwrap

from numba.core.dispatcher import Dispatcher

import ranker

SCRIPT = """
import numpy as np
from numba.core.dispatcher import Dispatcher

from ranker import calibration, divergence, exploration, guard, index, inference, inputs
from ranker.calibration import Wish
from ranker.config import Exploration, Guard, Serving
from ranker.pipeline import Request, warm
from msgspec import structs
from tests.ranker.test_pipeline import CONFIG, FAN, NOW, make

MODULES = calibration, divergence, exploration, guard, index, inference, inputs


def known():
    parts = [vars(module).values() for module in MODULES]
    found = {part for values in parts for part in values if isinstance(part, Dispatcher)}
    return {(part.__module__, part.__name__): len(part.signatures) for part in found}


warm()
before = known()
called = {
    "calibration": "falling _reranked _lay_out _choose ordered _shown",
    "guard": "_renewed _mean _blended",
    "exploration": "_drawn _chances",
    "divergence": "_apart_of _slate",
    "index": "_read",
}
for module, names in called.items():
    assert all(before[f"ranker.{module}", name] == 1 for name in names.split()), before
pipeline = make(structs.replace(
    CONFIG,
    guard=Guard(novelty=0.5, gap=0.0),
    serving=Serving(slate=10, candidates=30, swap=0.5),
    exploration=Exploration(slot=0.5),
))
# as a version's golden cases are checked when it is loaded
pipeline.inference.score(pipeline.inference.taste(FAN, NOW), user={}, request={}, rows=np.arange(3), now=NOW)
before = known()
items, acted = [f"i{n}" for n in range(40)], 0
for seed in range(20):
    for evidence in (FAN, FAN.__class__()):
        for wish in (None, 0.9, Wish(target=0.01), Wish(order=0.5), "personal"):
            for pinned in ((), ("i3", "i5")):
                request = Request(user="u", items=items, now=NOW, seed=seed, calibration=wish, pinned=pinned)
                slate = pipeline.rank(structs.replace(request, explain=seed % 2 == 0), evidence)
                acted += len(slate.interventions) + (slate.explored is not None)
                pipeline.rank(structs.replace(request, items=None, limit=5), evidence)
assert acted > 50, acted
after = known()
assert after == before, (before, after)
"""


def test_after_the_warm_up_no_request_compiles_anything() -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(SCRIPT)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_compiled_functions_call_only_those_of_their_own_file() -> None:
    # what numba keeps of a caller is made anew when the caller's file changes, not when the callee's does
    found = [
        part
        for module in pkgutil.iter_modules(ranker.__path__, "ranker.")
        for part in vars(importlib.import_module(module.name)).values()
        if isinstance(part, Dispatcher)
    ]
    assert len(found) > 20
    for part in found:
        for name in part.py_func.__code__.co_names:
            other = part.py_func.__globals__.get(name)
            if isinstance(other, Dispatcher):
                assert other.py_func.__module__ == part.py_func.__module__, (part, name)

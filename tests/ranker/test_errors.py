import pickle

from ranker import errors


def every(kind):
    yield kind
    for child in kind.__subclasses__():
        yield from every(child)


def test_every_error_survives_pickling_and_names_thing_value_and_remedy():
    for kind in every(errors.PlurankError):
        error = pickle.loads(pickle.dumps(kind("limit", 0, "ask for 1 or more")))
        assert type(error) is kind
        assert (error.thing, error.value, error.remedy) == ("limit", 0, "ask for 1 or more")
        assert str(error).startswith("limit: 0 ")
        assert str(error).endswith("; ask for 1 or more")


def test_a_long_value_is_cut_short():
    assert len(str(errors.PlurankError("body", "x" * 10_000))) < 200

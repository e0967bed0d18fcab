"""What users import is sorted, documented and nothing else."""

import inspect

import engine


def test_public_names_are_sorted_and_exist() -> None:
    constants_first = sorted(set(engine.__all__), key=lambda name: (not name.isupper(), name))
    assert list(engine.__all__) == constants_first
    assert [name for name in engine.__all__ if not hasattr(engine, name)] == []


def test_every_public_class_and_function_has_a_docstring_of_its_own() -> None:
    undocumented = [
        name
        for name in engine.__all__
        if (inspect.isclass(thing := getattr(engine, name)) or inspect.isfunction(thing))
        and (thing.__doc__ or f"{name}(").startswith(f"{name}(")  # dataclasses make one up
    ]

    assert undocumented == []


def test_public_methods_have_docstrings() -> None:
    undocumented = [
        f"{name}.{attribute}"
        for name in engine.__all__
        if inspect.isclass(thing := getattr(engine, name))
        for attribute, member in vars(thing).items()
        if inspect.isfunction(member)
        and not attribute.startswith("_")
        and not inspect.getdoc(getattr(thing, attribute))
    ]

    assert undocumented == []

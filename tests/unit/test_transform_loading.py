"""Finding a transform by its name: what is allowed, and what an import that fails says."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.errors import TransformNotAllowed, TransformNotLoaded
from engine.transform import loading
from engine.transform.loading import allows, load

GOOD = """
from engine.transform import transform

@transform(reads=["a"], writes=["b"])
def double(batch):
    return {"b": batch["a"].values * 2}

def plain(batch):
    return {}
"""

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Write]:
    """Writes a module of a name that no other test has, and gives the name."""
    before = set(sys.modules)
    name = f"loading_{abs(hash(request.node.name))}"

    def written(text: str = GOOD, *, at: str = "{}.py") -> str:
        file = tmp_path / at.format(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return name

    yield written
    for module in set(sys.modules) - before:
        if module.startswith(name):
            del sys.modules[module]


def refused(reference: str, search: Path) -> TransformNotLoaded:
    with pytest.raises(TransformNotLoaded) as caught:
        load(reference, {reference}, search=search)
    return caught.value


def test_a_transform_is_found_by_its_name(write: Write, tmp_path: Path) -> None:
    name = write()
    found = load(f"{name}:double", {f"{name}:double"}, search=tmp_path)
    assert found.reference == f"{name}:double"
    assert found.declaration.writes == ("b",)


def test_a_transform_of_a_package_is_found(write: Write, tmp_path: Path) -> None:
    name = write("", at="{}/__init__.py")
    write(at="{}/inner/transforms.py")
    reference = f"{name}.inner.transforms:double"
    assert load(reference, {f"{name}.inner.transforms:*"}, search=tmp_path).reference == reference


def test_a_transform_has_the_name_it_was_asked_for_by(write: Write, tmp_path: Path) -> None:
    name = write("", at="{}/__init__.py")
    write(at="{}/hidden.py")
    write(f"from {name}.hidden import double", at="{}/public.py")
    asked, own = f"{name}.public:double", f"{name}.hidden:double"
    assert load(asked, {asked}, search=tmp_path).reference == asked
    assert load(own, {own}, search=tmp_path).reference == own


def test_the_folder_is_searched_only_while_a_module_is_imported(write: Write, tmp_path: Path) -> None:
    before = list(sys.path)
    load(f"{write()}:double", {f"{write()}:*"}, search=tmp_path)
    assert sys.path == before
    refused("no_such_module_anywhere:f", tmp_path)
    assert sys.path == before


def test_what_a_module_prints_while_it_is_imported_is_no_data(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = write("print('welcome')\n" + GOOD)
    load(f"{name}:double", {f"{name}:double"}, search=tmp_path)
    assert capsys.readouterr() == ("", "welcome\n")


def test_the_folder_hides_nothing_that_is_installed(write: Write, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(GOOD)
    error = refused("json:double", tmp_path)
    assert "has no 'double'; it has no transforms" in error.message
    assert error.hint == (
        f"{tmp_path} has a 'json' too, but the name is taken by the standard library: give yours another"
    )
    sys.modules.pop("colorsys", None)  # one that has yet to be imported
    (tmp_path / "colorsys.py").write_text(GOOD)
    assert "taken by the standard library" in refused("colorsys:double", tmp_path).hint
    (tmp_path / "yaml").mkdir()
    assert "taken by an installed package" in refused("yaml:double", tmp_path).hint


@pytest.mark.parametrize(
    ("reference", "patterns", "allowed"),
    [
        ("m:f", {"m:f"}, True),
        ("m:f", {"m:*"}, True),
        ("m.n:f", {"m.n:*"}, True),
        ("m:f", set(), False),
        ("m:f", {"m:g"}, False),
        ("m:f", {"*"}, False),
        ("m:f", {"*:*"}, False),
        ("m:f", {"m"}, False),
        ("m.n:f", {"m:*"}, False),
        ("mm:f", {"m:*"}, False),
        ("m:*", {"m:*"}, False),
        ("os:system", {"m:*"}, False),
        ("m:f.g", {"m:*"}, False),
        ("m:f", {"M:f"}, False),
        ("m:f\n", {"m:*"}, False),
        ("m:é", {"m:*"}, False),
    ],
)
def test_what_a_pattern_allows(reference: str, patterns: set[str], allowed: bool) -> None:
    assert allows(reference, patterns) is allowed


def test_nothing_is_imported_that_is_not_allowed(write: Write, tmp_path: Path) -> None:
    witness = tmp_path / "imported"
    name = write(f"open({str(witness)!r}, 'w').close()\n" + GOOD)
    for allowed in (set(), {f"{name}:plain"}, {"os:*"}):
        with pytest.raises(TransformNotAllowed, match=f"transform {name}:double is not allowed here"):
            load(f"{name}:double", allowed, search=tmp_path)
    assert not witness.exists() and name not in sys.modules
    load(f"{name}:double", {f"{name}:*"}, search=tmp_path)
    assert witness.exists()


@pytest.mark.parametrize(
    "reference", ["double", "a.b.double", "a:b:c", ":f", "a:", "../a:f", "a;b:f", "a-b:f", "", "1a:f"]
)
def test_a_name_that_names_no_function_is_refused(reference: str, tmp_path: Path) -> None:
    assert "names no function" in refused(reference, tmp_path).message


def test_a_module_that_is_not_there(tmp_path: Path) -> None:
    error = refused("no_such_module_anywhere.deeper:f", tmp_path)
    assert error.message == ("transform no_such_module_anywhere.deeper:f: there is no module 'no_such_module_anywhere'")
    assert str(tmp_path) in error.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import no_such_module_anywhere",
            "ModuleNotFoundError: no module named 'no_such_module_anywhere' at {file}:1 in <module>: import",
        ),
        (
            "x = 1\nfrom json import no_such_name",
            "ImportError: cannot import name 'no_such_name' from 'json' at {file}:2 in <module>: from json import",
        ),
        ("raise ImportError('pass' + 'word', name='json')", "ImportError (json) at {file}:1 in <module>: raise"),
        ("import json\njson.loads('{' + 'pass' + 'word')", "JSONDecodeError at {file}:2 in <module>: json.loads("),
        ("import os\nKEY = os.environ['NO_SUCH_' + 'VARIABLE']", "KeyError at {file}:2 in <module>: KEY = os.environ"),
        ("def f():\n    raise ValueError('pass' + 'word')\nf()", "ValueError at {file}:2 in f: raise ValueError("),
        ("import sys\nsys.exit(3)", "SystemExit, which ends a program, at {file}:2 in <module>: sys.exit(3)"),
        ("raise GeneratorExit", "GeneratorExit at {file}:1"),
        ("x = (\ny = 1", "SyntaxError: '(' was never closed at {file}:1"),
        ("exec('def f(batch)')", "SyntaxError: expected ':' at <string>:1"),
        (
            "from engine.transform import transform\n\n@transform\ndef f(batch): ...",
            "says nothing of columns: @transform(reads=[…], writes=[…]) at {file}:3 in <module>: @transform",
        ),
        (
            "from engine.transform import transform\n\n@transform(reads=['a'])\ndef f(batch): ...",
            "writes is missing: @transform(reads=[…], writes=[…]) at {file}:3 in <module>: @transform(reads=['a'])",
        ),
        (
            "from engine.transform import transform\n\n@transform(reads=[], writes=[])\ndef f(batch): ...",
            "writes is empty: a transform writes at least one column at {file}:3 in <module>: @transform(reads=",
        ),
    ],
)
def test_an_import_that_fails_shows_the_line_of_the_authors_module(
    write: Write, tmp_path: Path, text: str, message: str
) -> None:
    name = write(text)
    error = refused(f"{name}:f", tmp_path)
    assert f"transform {name}:f cannot be imported: " in error.message
    assert message.format(file=f"{name}.py") in error.message
    assert "password" not in error.message and "NO_SUCH_VARIABLE" not in error.message
    assert error.__traceback__ is not None and error.__cause__ is None


def test_a_helper_module_of_the_same_package_is_the_authors_too(write: Write, tmp_path: Path) -> None:
    name = write("", at="{}/__init__.py")
    write("\n\nint('pass' + 'word')", at="{}/helper.py")
    write(f"from {name} import helper", at="{}/transforms.py")
    error = refused(f"{name}.transforms:f", tmp_path)
    assert f"ValueError at {name}/helper.py:3 in <module>" in error.message


def test_a_module_that_is_missing_in_a_folder_of_ones_own_is_just_missing(write: Write, tmp_path: Path) -> None:
    name = write("", at="{}/transforms.py")  # without an __init__.py
    error = refused(f"{name}.transfroms:f", tmp_path)
    assert f"there is no module '{name}.transfroms'" in error.message
    assert "is taken by" not in error.hint and "set PYTHONPATH" in error.hint


def test_a_function_that_is_not_there_is_answered_with_those_that_are(write: Write, tmp_path: Path) -> None:
    name = write()
    error = refused(f"{name}:duoble", tmp_path)
    assert f"{name} (…/{tmp_path.name}/{name}.py) has no 'duoble'; its transforms: double" in error.message


def test_a_function_that_is_not_decorated_is_refused(write: Write, tmp_path: Path) -> None:
    name = write()
    error = refused(f"{name}:plain", tmp_path)
    assert "is not decorated with @transform" in error.message
    assert "put @transform(" in error.hint


def test_a_folder_without_an_init_is_a_package_too(write: Write, tmp_path: Path) -> None:
    name = write(at="{}/transforms.py")
    reference = f"{name}.transforms:double"
    assert load(reference, {reference}, search=tmp_path).reference == reference
    assert refused(f"{name}.transforms:plain", tmp_path).hint.startswith("put @transform(")


def test_the_function_of_a_module_is_not_searched_for_in_what_it_makes_up(write: Write, tmp_path: Path) -> None:
    name = write("def __getattr__(name):\n    raise RuntimeError('pass' + 'word')")
    assert "has no 'f'; it has no transforms" in refused(f"{name}:f", tmp_path).message


def test_a_module_that_failed_is_tried_again_when_it_is_mended(write: Write, tmp_path: Path) -> None:
    name = write("raise ValueError")
    refused(f"{name}:double", tmp_path)
    write(GOOD + "\n# longer, so that no compiled file of the same second fits\n")
    assert load(f"{name}:double", {f"{name}:double"}, search=tmp_path)


def test_a_module_that_raises_ctrl_c_is_one_that_fails(write: Write, tmp_path: Path) -> None:
    """A real one comes to the main thread, and no module is imported there."""
    name = write("raise KeyboardInterrupt")
    error = refused(f"{name}:f", tmp_path)
    assert f"KeyboardInterrupt, which ends a program, at {name}.py:1" in error.message


def test_one_text_is_no_collection_of_patterns(write: Write, tmp_path: Path) -> None:
    name = write()
    with pytest.raises(TypeError, match="not one str"):
        load(f"{name}:double", f"x{name}:doubled", search=tmp_path)
    assert name not in sys.modules


def test_a_wildcard_is_for_what_a_module_defines_itself(write: Write, tmp_path: Path) -> None:
    name = write("", at="{}/__init__.py")
    write(at="{}/hidden.py")
    write(f"from {name}.hidden import double", at="{}/public.py")
    reference = f"{name}.public:double"
    with pytest.raises(TransformNotAllowed, match=rf"it has this one from {name}\.hidden") as caught:
        load(reference, {f"{name}.public:*"}, search=tmp_path)
    assert f"allow {reference} by its name" in caught.value.hint
    assert load(reference, {reference}, search=tmp_path).reference == reference


def test_the_folder_adds_nothing_to_what_is_installed_elsewhere(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its optional imports are not for whoever owns the folder to fill in."""
    installed, here = tmp_path / "installed", tmp_path / "here"
    name = write("try:\n    import planted_beside\nexcept ImportError:\n    pass\n" + GOOD, at="installed/{}.py")
    here.mkdir()
    (here / "planted_beside.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(installed)
    assert load(f"{name}:double", {f"{name}:double"}, search=here)
    assert "planted_beside" not in sys.modules


def test_a_neighbour_in_the_folder_is_found_for_a_module_that_is_loaded_second(write: Write, tmp_path: Path) -> None:
    name = write("", at="{}/__init__.py")
    write(at="{}/first.py")
    (tmp_path / f"{name}_beside.py").write_text("")
    write(f"import {name}_beside\n" + GOOD, at="{}/second.py")
    for module in ("first", "second"):
        assert load(f"{name}.{module}:double", {f"{name}.{module}:*"}, search=tmp_path)


# -- modules that do not come back ------------------------------------------------------------------------------------


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """What a module that hangs waits for; an import may take 0.2 s."""
    monkeypatch.setattr(loading, "IMPORT_LIMIT_S", 0.2)
    monkeypatch.setattr(threading, "held_by_a_test", event := threading.Event(), raising=False)
    yield event
    event.set()


HANGS = "import threading\n\n\ndef wait():\n    threading.held_by_a_test.wait(60)\n\n\nwait()\n" + GOOD


def test_a_module_that_hangs_is_told_with_its_line_and_keeps_nobody_else(
    write: Write, tmp_path: Path, held: threading.Event
) -> None:
    name, before, stdout = write(HANGS), list(sys.path), sys.stdout
    error = refused(f"{name}:double", tmp_path)
    assert f"{name} has not been imported after 0 s; it is at {name}.py:5 in wait: threading.held" in error.message
    assert (sys.path, sys.stdout) == (before, stdout)
    again = refused(f"{name}:double", tmp_path)
    assert "has not been imported after" in again.message
    (tmp_path / f"{name}_too.py").write_text(GOOD)
    assert load(f"{name}_too:double", {f"{name}_too:double"}, search=tmp_path)


def test_a_module_that_came_late_is_there_for_the_next(write: Write, tmp_path: Path, held: threading.Event) -> None:
    name = write(HANGS)
    refused(f"{name}:double", tmp_path)
    held.set()
    for thread in threading.enumerate():
        if thread.name == f"import of {name}":
            thread.join(30)
    assert load(f"{name}:double", {f"{name}:double"}, search=tmp_path)


def test_who_waits_for_another_import_waits_no_longer_than_that(
    write: Write, tmp_path: Path, held: threading.Event
) -> None:
    name = write()
    with loading._importing:
        assert "another module is being imported" in refused(f"{name}:double", tmp_path).message
    assert load(f"{name}:double", {f"{name}:double"}, search=tmp_path)


def test_a_module_may_load_another(write: Write, tmp_path: Path) -> None:
    name = write()
    (tmp_path / f"{name}_outer.py").write_text(
        f"from engine.transform.loading import load\nload('{name}:double', ['{name}:*'])\n" + GOOD
    )
    assert load(f"{name}_outer:double", {f"{name}_outer:*"}, search=tmp_path)

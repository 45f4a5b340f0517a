"""The paper's numbers, reproduced from specs: nothing but the paper's own column may be written down."""

import json

import pytest

from lopt.symmetry.compare import same_up_to_names
from lopt.symmetry.describe import count_layer
from scripts import paper_tables
from scripts.conformance import vector_spec
from tasks import paper_specs

PRINTED = {  # (task, f, spec): (paper, ours)
    ("MLP", "UNF", "true"): (3783, 3783),
    ("MLP", "DeepSets", "any"): (2788, 2788),
    ("MLP", "NFN", "true"): (3783, 3783),
    ("CNN", "UNF", "released"): (7369, 7369),
    ("CNN", "UNF", "true"): (None, 5513),
    ("CNN", "DeepSets", "any"): (2788, 2788),
    ("RNN", "UNF", "true"): (8043, 8043),
    ("RNN", "DeepSets", "any"): (2788, 2788),
    ("RNN", "NFN", "true"): (None, None),
    ("Transformer", "UNF", "released"): (64168, 64168),
    ("Transformer", "UNF", "true"): (None, 2752 + 32 * 2322 + 37 + 3),
    ("Transformer", "DeepSets", "any"): (2788, 2788),
    ("Transformer", "NFN", "true"): (None, None),
}


def test_parameters():
    rows = paper_tables.parameter_rows()
    found = [((row.task, row.network, row.spec), (row.paper, row.ours)) for row in rows]
    nfn = [numbers for key, numbers in found if key == ("CNN", "NFN", "true")]
    assert nfn == [(41603, 41603), (None, 41625)]
    assert {key: numbers for key, numbers in found if key != ("CNN", "NFN", "true")} == PRINTED
    assert len(rows) == len(PRINTED) + 2


def test_differences_and_refusals_are_explained():
    notes = {(row.task, row.network, row.ours): row.note for row in paper_tables.parameter_rows()}
    assert "without the 22 biases" in notes["CNN", "NFN", 41603]
    assert "a permutation acts twice on leaf 'rec/kernel'" in notes["RNN", "NFN", None]
    assert "'embed' permutes 14 kernels" in notes["Transformer", "NFN", None]
    assert "the released spec is wrong" in notes["CNN", "UNF", 5513]


def test_terms():
    rows = {(row.task, row.spec): (row.tensors, row.paper, row.terms, row.views) for row in paper_tables.term_rows()}
    assert rows == {
        ("MLP", "true"): (4, 32, 32, 12),
        ("MLP, 3 layers", "true"): (6, None, 62, 18),
        ("CNN", "released"): (6, 144, 144, 50),
        ("CNN", "true"): (6, None, 86, 42),
        ("RNN", "true"): (8, 165, 165, 28),
        ("Transformer", "released"): (37, 1918, 1918, 102),
        ("Transformer", "true"): (37, None, 2322, 102),
        ("Transformer, by head", "true"): (37, None, 2388, 124),
    }


def test_a_number_that_no_layer_has_is_refused():
    with pytest.raises(ValueError, match="no whole number of terms gives 3784"):
        paper_tables.implied_terms(3784, paper_specs.MLP.true)


@pytest.mark.parametrize("name", ["mlp", "cnn", "rnn", "transformer"])
def test_true_specs_are_those_of_the_vectors(name, shared_dir):
    vector = vector_spec(json.loads((shared_dir / "unf_vectors" / f"{name}.json").read_text()))
    assert same_up_to_names(getattr(paper_specs, name.upper()).true.relax(), vector)


def test_the_faults_of_the_released_transformer_are_those_described():
    """Two mended by renaming, the third by what is then left: each changes the count."""
    true, released = paper_specs.TRANSFORMER.true, paper_specs.TRANSFORMER.released
    vocabulary = paper_specs.renamed(released, classes="vocabulary")
    stream = paper_specs.renamed(vocabulary, features0="embed", features2="embed", features4="embed")
    assert same_up_to_names(stream, paper_specs.renamed(true, hidden0="attention0", hidden1="attention1"))
    counts = [count_layer(spec).num_terms for spec in (released, vocabulary, stream, true)]
    assert counts[0] < counts[1] < counts[2]
    assert counts[3] < counts[2]


def test_prints_both_tables(capsys):
    assert paper_tables.main(["parameters"]) == 0
    out = capsys.readouterr().out
    assert "41,603" in out
    assert "64,168" in out
    assert "2,322" in out
    assert "(1) with biases" in out


def test_unknown_tables_and_help(capsys):
    with pytest.raises(SystemExit) as error:
        paper_tables.main(["figure9"])
    assert error.value.code == 2
    with pytest.raises(SystemExit):
        paper_tables.main(["--help"])
    assert "parameters" in capsys.readouterr().out

"""Over-representation of gene sets: exact p and q, background, GMT files and blood markers."""

from __future__ import annotations

import gzip
import math
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import hypergeom

import topicell
from topicell.errors import InputError
from topicell.evaluation import gene_sets as reading
from topicell.evaluation.gene_sets import read_gene_sets
from topicell.evaluation.ranking import gene_scores, top_genes
from topicell.report import enrichment as module
from topicell.report.enrichment import enrichment

GENES = [f"CD{i}" for i in range(40)]
SETS = {
    "first": GENES[:6],
    "middle": GENES[3:20:2],
    "far": GENES[25:30],
    "last": GENES[36:],
    "all": GENES,
}
LEADING = [GENES[:5], [GENES[39], GENES[3], GENES[26], GENES[5]]]
COLUMNS = [
    "topic",
    "gene_set",
    "overlap",
    "set_size",
    "genes_leading",
    "background",
    "odds_ratio",
    "p",
    "q",
    "genes",
]


def test_p_and_odds_ratio_are_those_of_the_definition():
    table = enrichment(LEADING, SETS, GENES, ["a", "b"])
    assert list(table.columns) == COLUMNS
    assert table.attrs == {"left_out": []}
    assert len(table) == 2 * len(SETS)
    assert list(dict.fromkeys(table["topic"])) == ["a", "b"]
    for topic, leading in zip("ab", LEADING, strict=True):
        of_topic = table[table["topic"] == topic].set_index("gene_set")
        assert of_topic["p"].is_monotonic_increasing
        assert set(of_topic.index) == set(SETS)
        for name, genes in SETS.items():
            row = of_topic.loc[name]
            shared = [gene for gene in leading if gene in genes]
            x, m, k, n = len(shared), len(genes), len(leading), len(GENES)
            assert row["genes"] == " ".join(shared)
            counts = [row[c] for c in ("overlap", "set_size", "genes_leading", "background")]
            assert counts == [x, m, k, n]
            assert row["p"] == pytest.approx(hypergeom.sf(x - 1, n, m, k))
            odds = (x + 0.5) * (n - m - k + x + 0.5) / ((m - x + 0.5) * (k - x + 0.5))
            assert row["odds_ratio"] == pytest.approx(odds)


def test_p_is_the_share_of_draws_with_as_many_common_genes():
    genes, marked = list("ABCDEFGH"), set("ABC")
    draws = [len(marked & set(draw)) for draw in combinations(genes, 4)]
    for leading in (list("ABGH"), list("ABCD"), list("AFGH"), list("EFGH")):
        row = enrichment([leading], {"marked": sorted(marked)}, genes, ["t"]).iloc[0]
        as_many = [n >= row["overlap"] for n in draws]
        assert row["p"] == pytest.approx(sum(as_many) / math.comb(8, 4))


def test_sets_without_a_common_gene_count_as_tests():
    idle = {f"idle_{i}": GENES[20 + i : 24 + i] for i in range(8)}
    table = enrichment([GENES[:4]], {"hit": GENES[:5], "half": GENES[3:8]} | idle, GENES, ["t"])
    assert list(table["gene_set"]) == ["hit", "half", *idle]
    assert list(table["overlap"]) == [4, 1] + [0] * 8
    first, second = table["p"][:2]
    assert first < second < 1
    assert set(table["p"][2:]) == {1.0}
    # Benjamini & Hochberg by hand: 10 tests, p times 10 over its rank, and not above a later one.
    assert table["q"][0] == pytest.approx(first * 10)
    assert table["q"][1] == pytest.approx(min(second * 10 / 2, 1))
    assert set(table["q"][2:]) == {1.0}


def test_q_is_computed_for_each_topic_separately():
    together = enrichment(LEADING, SETS, GENES, ["a", "b"])
    for topic, leading in zip("ab", LEADING, strict=True):
        alone = enrichment([leading], SETS, GENES, [topic])
        of_topic = together[together["topic"] == topic].reset_index(drop=True)
        assert of_topic.equals(alone)


def test_p_depends_on_the_background():
    """Half of a set leads: significant among all genes, expected among the modelled ones."""
    genome = [f"G{i}" for i in range(2000)]
    modelled = genome[:20]
    sets = {"common": modelled[5:15] + genome[1000:1010], "foreign": genome[500:600]}
    leading = [modelled[:10]]
    of_genome = enrichment(leading, sets, genome, ["t"]).set_index("gene_set").loc["common"]
    of_modelled = enrichment(leading, sets, modelled, ["t"])
    assert of_genome["q"] < 1e-5
    assert of_modelled["p"][0] == pytest.approx(hypergeom.sf(4, 20, 10, 10))
    assert of_modelled["q"][0] > 0.5
    assert (of_modelled["set_size"][0], of_modelled["background"][0]) == (10, 20)
    assert of_modelled.attrs["left_out"] == ["foreign"]
    assert list(of_modelled["gene_set"]) == ["common"]


def test_sets_with_one_modelled_gene_are_left_out():
    sets = {"one": ["CD1", "x", "y"], "two": ["CD1", "CD2", "CD2", "x"], "none": ["x"]}
    assert module.restricted_sets(sets, GENES) == {"two": ["CD1", "CD2"]}


@pytest.mark.parametrize(
    ("genes", "one_set"),
    [
        ([str(i) for i in range(40)], ["0", "1", "2"]),
        ([f"Gene{i}" for i in range(20)] + [f"GENE{i}" for i in range(20)], ["GENE0", "GENE1"]),
        ([f"C{i}orf{i}" for i in range(40)], ["C0orf0", "C1orf1", "C2orf2"]),
        ([" a", "b;c", "a", "é", *GENES], [" a", "b;c", "a"]),
    ],
    ids=["numbers", "differ by case", "mixed case", "odd names"],
)
def test_names_are_compared_exactly(genes, one_set):
    row = enrichment([genes[:3]], {"s": one_set}, genes, ["t"]).iloc[0]
    shared = [gene for gene in genes[:3] if gene in one_set]
    assert row["genes"] == " ".join(shared)
    assert (row["overlap"], row["background"]) == (len(shared), 40 + 4 * ("é" in genes))
    p = hypergeom.sf(len(shared) - 1, row["background"], len(one_set), 3)
    assert row["p"] == pytest.approx(p)


def test_names_may_be_arrays():
    expected = enrichment(LEADING, SETS, GENES, ["a", "b"])
    for kind in (object, str):
        leading = [np.array(genes, dtype=kind) for genes in LEADING]
        genes = np.array(GENES, dtype=kind)
        assert enrichment(leading, SETS, genes, np.array(["a", "b"], kind)).equals(expected)


def test_p_of_one_and_of_nearly_zero_print_nothing(capfd):
    table = enrichment([["CD0", "CD1"]], {"far": GENES[20:]}, GENES, ["t"])
    assert list(table["p"]) == list(table["q"]) == [1.0]
    assert list(table["genes"]) == [""]
    many = [f"G{i}" for i in range(20_000)]
    extreme = enrichment([many[:200]], {"same": many[:200]}, many, ["t"])
    assert extreme["p"][0] < 1e-300
    assert np.isfinite(extreme["odds_ratio"][0])
    assert capfd.readouterr() == ("", "")


def test_gseapy_has_the_same_p_and_odds_ratio():
    """Its q differs, because it counts only the sets that share a gene."""
    import gseapy

    table = enrichment([GENES[:4]], SETS, GENES, ["t"]).set_index("gene_set")
    theirs = gseapy.enrich(GENES[:4], dict(SETS), background=GENES, no_plot=True)
    theirs.close()
    results = theirs.results.set_index("Term")
    assert set(results.index) == {name for name in SETS if table["overlap"][name]}
    ours = table.loc[results.index]
    np.testing.assert_allclose(ours["p"], results["P-value"].astype(float))
    np.testing.assert_allclose(ours["odds_ratio"], results["Odds Ratio"].astype(float))
    assert ours["q"]["first"] > results["Adjusted P-value"]["first"]


def test_symbols_in_another_case_are_an_error():
    mouse = [gene.capitalize() for gene in GENES]
    with pytest.raises(InputError) as error:
        module.restricted_sets(SETS, mouse)
    assert str(error.value) == (
        "report.gene_sets: no gene of the 5 sets is among the 40 modelled genes, but some differ "
        "only in case: 'CD0' of 'first' is 'Cd0' in the data; write the symbols as in the data, or "
        "use sets of the same species"
    )


def test_sets_without_modelled_genes_are_an_error():
    with pytest.raises(InputError) as error:
        module.restricted_sets(SETS, ["ENSG01", "ENSG00"])
    assert str(error.value) == (
        "report.gene_sets: none of the 5 sets has 2 of the 2 modelled genes (the sets have names "
        "like 'CD0', the data like 'ENSG00'); use sets with the same kind of gene names, or "
        "model more genes"
    )
    with pytest.raises(InputError, match="none of the 1 sets has 2 of the 40 modelled genes"):
        module.restricted_sets({"one": ["CD0", "cd1"]}, GENES)


GMT = "first\tof us\tCD3D\tCD3E\nsecond\t\tMS4A1 \t\tCD79A\tMS4A1\t\t\n"
READ = {"first": ["CD3D", "CD3E"], "second": ["MS4A1", "CD79A"]}


@pytest.mark.parametrize(
    "content",
    [
        GMT.encode(),
        GMT.encode("utf-8-sig"),
        GMT.replace("\n", "\r\n").encode(),
        ("\n" + GMT.replace("\n", "\n \t\n").strip("\n")).encode(),
        gzip.compress(GMT.encode()),
    ],
    ids=["plain", "with a mark", "windows", "empty lines", "gzip"],
)
@pytest.mark.parametrize("name", ["sets.gmt", "sets.gmt.gz", "blood"])
def test_every_form_of_a_gmt_file_is_read(content, name, tmp_path, monkeypatch):
    path = tmp_path / name
    path.write_bytes(content)
    assert read_gene_sets(path) == read_gene_sets(str(path)) == READ
    assert list(read_gene_sets(path)) == ["first", "second"]
    monkeypatch.chdir(tmp_path)
    assert read_gene_sets(f"./{name}") == READ


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sets.gmt").write_text(GMT)
    assert read_gene_sets("~/sets.gmt") == READ


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            GMT.encode() + b"third of us CD14 LYZ S100A8 S100A9 S100A12 VCAN\n",
            "line 3 has no tab ('third of us CD14 LYZ S100A8 S100A9 S100A'); each line of a "
            "GMT file has a name, a description and genes, separated by tabs",
        ),
        (
            GMT.encode() + b"\nthird\tof us\t \n",
            "the set 'third' on line 4 has no genes; genes follow the name and the description, "
            "which may be empty; add them or delete the line",
        ),
        (b"third\tof us\n", "the set 'third' on line 1 has no genes; "),
        (b"\tof us\tCD14\n", "the set on line 1 has no name; name it in the first field"),
        (
            GMT.encode() + b"first\tagain\tCD14\n",
            "lines 1 and 3 are both named 'first'; give each set a name of its own",
        ),
        (b"", "the file is empty; name a GMT file with at least one set"),
        (b" \n\n", "the file is empty; "),
        (gzip.compress(b""), "the file is empty; "),
        (
            GMT.encode() + "third\tdéjà\tCD14".encode("latin-1"),
            "line 3 is not UTF-8 text; save the gene sets as a GMT file in UTF-8",
        ),
        (GMT.encode("utf-16"), "line 1 is not UTF-8 text; "),
        (GMT.encode("utf-16-le"), "line 1 is not UTF-8 text; "),
        (
            gzip.compress(GMT.encode())[:-9],
            "the gzip file is incomplete or damaged; copy or download it again",
        ),
        (b"\x1f\x8bno gzip", "the gzip file is incomplete or damaged; "),
    ],
    ids=[
        "not tab separated",
        "no genes",
        "name and description alone",
        "no name",
        "duplicate names",
        "empty",
        "blank",
        "empty gzip",
        "latin-1",
        "utf-16",
        "utf-16 without mark",
        "cut off",
        "damaged",
    ],
)
def test_a_bad_file_is_refused(content, message, tmp_path):
    path = tmp_path / "bad.gmt"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_gene_sets(path)
    said = str(error.value)
    assert said.startswith(f"report.gene_sets = {str(path)!r}: {message}")
    assert "\n" not in said


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(InputError) as error:
        read_gene_sets(tmp_path / "none.gmt")
    said = str(error.value)
    assert said.startswith(f"report.gene_sets = '{tmp_path / 'none.gmt'}': there is no such file (")
    assert said.endswith("check the path, or use 'blood', the sets included in topicell")
    with pytest.raises(InputError, match=r"cannot be read .*directory.*; name a GMT file"):
        read_gene_sets(tmp_path)


def test_blood_markers_are_well_formed():
    lines = reading.BLOOD_MARKERS.read_text(encoding="ascii").splitlines()
    rows = [line.split("\t") for line in lines]
    names = [row[0] for row in rows]
    assert len(set(names)) == len(names) >= 20
    assert all(not set(name) & set(",;\"'/") for name in names)
    assert {row[1] for row in rows} == {"compiled for topicell from textbook markers"}
    for name, _, *genes in rows:
        assert len(set(genes)) == len(genes) >= 5, name
        assert all(gene and gene == gene.strip() for gene in genes), name
    assert read_gene_sets("blood") == {name: genes for name, _, *genes in rows}
    assert read_gene_sets("blood") == read_gene_sets(reading.BLOOD_MARKERS)


def test_topics_of_blood_are_enriched_for_its_cell_types():
    fit = topicell.fit(
        topicell.load_dataset("pbmc68k"), n_topics=8, n_replicates=1, epochs=5, progress=False
    )
    score_KG = gene_scores(fit.beta()[fit.selected], "relevance", fit.gene_frequency_G)
    leading = [list(fit.genes[genes]) for genes in top_genes(score_KG, 20)]
    table = enrichment(leading, read_gene_sets("blood"), fit.genes, fit.topic_names)
    found = table[table["q"] < 0.01]
    cells = {"B cell", "CD14 monocyte", "NK cell", "naive CD4 T cell"}
    assert cells <= set(found["gene_set"])
    best = table.groupby("gene_set")["q"].idxmin()
    b_cell = table.loc[best["B cell"]]
    assert {"CD79A", "CD79B"} <= set(b_cell["genes"].split())
    # Different cells, different topics.
    assert table["topic"][[best[name] for name in sorted(cells)]].is_unique
    assert "erythroid cell" in table.attrs["left_out"]

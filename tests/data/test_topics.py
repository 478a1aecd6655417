"""Generated topics: the label is what most sentences are about; no word of the test is labelled."""

import re
from collections import Counter

import pytest

from lw_jax.data import topics
from lw_jax.data.leak import find
from lw_jax.data.topics import NEUTRAL, STATEMENTS, TOPICS, Config, split_nouns
from lw_jax.errors import UserError

SPLITS = ("train", "validation", "eval")


def texts(split, count=200, **options):
    found = Config(**options).rows(split, seed=3)
    return [found[i][0] for i in range(count)]


def counted(example, split):
    """Sentences about each topic, by the nouns in them."""
    words = re.findall(r"[a-z]+", example.context)
    return Counter(t for t in TOPICS for noun in split_nouns(t, split) if noun in words)


@pytest.mark.parametrize("split", SPLITS)
def test_the_label_is_what_most_sentences_are_about(split):
    for example in texts(split):
        about = counted(example, split)
        (first, most), *others = about.most_common()
        assert (example.answers, most) == ((first,), 3)
        assert all(count < 3 for _, count in others)
        assert sum(about.values()) == 5 == example.context.count(".")


def test_a_block_of_rows_has_every_label_once():
    labels = [example.answers[0] for example in texts("train")]
    blocks = {tuple(labels[i : i + 4]) for i in range(0, 200, 4)}
    assert all(sorted(block) == sorted(TOPICS) for block in blocks)
    assert len(blocks) > 10  # in no order that could be learned


def test_splits_share_no_noun_and_no_name():
    for topic in TOPICS:
        parts = [set(split_nouns(topic, split)) for split in SPLITS]
        assert all(len(part) > 3 for part in parts)
        assert sum(map(len, parts)) == len(set.union(*parts)) == len(TOPICS[topic])
    training = Config(size=300).rows("train")
    assert find(training, Config(eval_size=300).rows("eval")) == []


def test_rows_depend_on_seed_split_and_index_alone():
    cfg = Config()
    again = [cfg.rows("eval", seed=3)[i][0] for i in reversed(range(200))]
    assert again[::-1] == texts("eval")
    assert cfg.rows("eval", seed=4)[0] != cfg.rows("eval", seed=3)[0]
    assert cfg.rows("eval", seed=3, level=4)[0][0].context.count(".") == 4
    with pytest.raises(IndexError):
        cfg.rows("eval")[cfg.eval_size]


def test_untold_sentences_say_nothing_but_the_noun():
    told = {re.sub(r"\{.*?\}", "", s) for of in STATEMENTS.values() for s in of}
    assert told.isdisjoint(re.sub(r"\{.*?\}", "", s) for s in NEUTRAL)
    nouns = [n for t in TOPICS for n in split_nouns(t, "eval")]
    shapes = Counter()
    for example in texts("eval", told=0.0):
        for sentence in re.findall(r"[^.]+\.", example.context):
            shapes[re.sub(r"\b([A-Z]\w+|" + "|".join(nouns) + r")\b", "_", sentence).strip()] += 1
    assert len(shapes) == len(NEUTRAL)


@pytest.mark.parametrize(("sentences", "own"), [(2, 3), (6, 1), (10, 3)])
def test_a_topic_that_could_not_win_is_an_error(sentences, own):
    with pytest.raises(UserError, match=r"^sentences: "):
        Config(sentences=sentences, own=own)


def test_plurals_tell_no_topic():
    found = {topics.plural("things", n) for n in ("knife", "brush", "box", "vase", "scarf")}
    assert found == {"knives", "brushes", "boxes", "vases", "scarves"}
    assert topics.plural("places", "quarry") == "quarries"
    assert topics.plural("places", "valley") == "valleys"
    assert topics.plural("animals", "mice") == "mice"

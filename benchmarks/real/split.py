"""Holds whole articles of a SQuAD file out: `python benchmarks/real/split.py QA.json OUT`.

OUT gets `train.json`, `articles.json` (questions on whole articles whose titles begin with
`--prefix`) and `others.json` (some of all other titles; a passage without a title is its own).
A hash of the title decides the order in which they are taken, so the same file is always split in
the same way. No article is in two files: what is not asked of a held-out article is left out. With
`--prose` (JSON lines with a `context`) OUT gets `prose.jsonl` as well. Passages and prose that have
13 words in a row with any passage of a held-out article are left out of both. With
`--longest-answer` training questions whose answer has more characters are left out; with `--texts`
OUT gets `texts.jsonl`, about which questions can be written (`lw-jax questions`): prose from this
level on, the highest level first, then the passages of training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    cli.add_argument("file", type=Path, help="SQuAD v1.1, nested")
    cli.add_argument("out", type=Path)
    cli.add_argument("--prefix", default="squadshifts_new_wiki:")
    cli.add_argument("--articles", type=int, default=10, help="articles in articles.json")
    cli.add_argument("--questions", type=int, default=50, help="on each of them, at least")
    cli.add_argument("--others", type=int, default=260, help="at least so many in others.json")
    cli.add_argument("--prose", type=Path, help="JSON lines with a context")
    cli.add_argument("--longest-answer", type=int, help="characters of a training answer at most")
    cli.add_argument("--texts", type=int, help="lowest level of the prose in texts.jsonl")
    args = cli.parse_args()
    entries: dict[str, list[dict[str, Any]]] = {}
    for entry in json.loads(args.file.read_text(encoding="utf-8"))["data"]:
        for title, paragraph in _paragraphs(entry):
            entries.setdefault(title, []).append(paragraph)
    order = sorted(entries, key=lambda t: hashlib.sha256(t.encode()).hexdigest())
    own = [title for title in order if title.startswith(args.prefix)]
    rest = [title for title in order if not title.startswith(args.prefix)]
    held = {"articles": own[: args.articles], "others": _first(rest, entries, args.others)}
    out = {title for titles in held.values() for title in titles}
    texts = [paragraph["context"] for title in out for paragraph in entries[title]]
    seen = {stretch for text in texts for stretch in _stretches(text)}
    for title in held["articles"]:
        entries[title] = _few(entries[title], args.questions)
    held["train"] = [title for title in entries if title not in out]
    left_out = 0
    for title in held["train"]:
        apart = [p for p in entries[title] if seen.isdisjoint(_stretches(p["context"]))]
        left_out += len(entries[title]) - len(apart)
        entries[title] = apart
    if args.longest_answer is not None:
        for title in held["train"]:
            entries[title] = _short(entries[title], args.longest_answer)
    held["train"] = [title for title in held["train"] if entries[title]]
    print(f"{left_out} passages of training share words with a held-out one, and are left out")
    args.out.mkdir(parents=True, exist_ok=True)
    for name, titles in held.items():
        data = [{"title": _shown(t), "paragraphs": entries[t]} for t in titles]
        path = args.out / f"{name}.json"
        path.write_text(json.dumps({"data": data}, ensure_ascii=False), encoding="utf-8")
        count = sum(_questions(entries[t]) for t in titles)
        print(f"{path}: {len(titles)} titles, {count} questions")
    if args.prose is not None:
        lines = args.prose.read_text(encoding="utf-8").splitlines()
        kept = [x for x in lines if seen.isdisjoint(_stretches(json.loads(x)["context"]))]
        path = args.out / "prose.jsonl"
        path.write_text("\n".join(kept) + "\n", encoding="utf-8")
        print(f"{path}: {len(kept)} of {len(lines)} rows")
        if args.texts is not None:
            rows = [row for x in kept if (row := json.loads(x)).get("level", 0) >= args.texts]
            rows.sort(key=lambda row: -row["level"])
            passages = [(_shown(t), p["context"]) for t in held["train"] for p in entries[t]]
            found = [{"context": row["context"]} for row in rows]
            found += [{"title": title, "context": context} for title, context in passages]
            path = args.out / "texts.jsonl"
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))
            print(f"{path}: {len(found)} texts")


WORDS = 13
"""Words in a row by which two texts are taken for parts of one."""


def _stretches(text: str) -> Iterator[str]:
    words = re.findall(r"\w+", text.lower())
    size = min(WORDS, max(1, len(words)))
    yield from (" ".join(words[i : i + size]) for i in range(len(words) - size + 1))


UNTITLED = "\n"
"""Begins the key of a passage without a title."""


def _paragraphs(entry: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for paragraph in entry["paragraphs"]:
        yield entry.get("title") or UNTITLED + paragraph["context"], paragraph


def _shown(title: str) -> str:
    return "" if title.startswith(UNTITLED) else title


def _questions(paragraphs: list[dict[str, Any]]) -> int:
    return sum(len(paragraph["qas"]) for paragraph in paragraphs)


def _short(paragraphs: list[dict[str, Any]], characters: int) -> list[dict[str, Any]]:
    """The paragraphs with the questions of which an answer has at most so many characters."""
    found = []
    for paragraph in paragraphs:
        asked = [q for q in paragraph["qas"] if _length(q) <= characters]
        found += [paragraph | {"qas": asked}] if asked else []
    return found


def _length(question: dict[str, Any]) -> int:
    """Characters of the first answer, which is trained on."""
    return max((len(answer["text"]) for answer in question["answers"][:1]), default=0)


def _first(titles: list[str], entries: dict[str, list[dict[str, Any]]], least: int) -> list[str]:
    taken, count = [], 0
    for title in titles:
        if count >= least:
            break
        taken.append(title)
        count += _questions(entries[title])
    return taken


def _few(paragraphs: list[dict[str, Any]], least: int) -> list[dict[str, Any]]:
    taken: list[dict[str, Any]] = []
    for paragraph in paragraphs:
        if _questions(taken) >= least:
            break
        taken.append(paragraph)
    return taken


if __name__ == "__main__":
    main()

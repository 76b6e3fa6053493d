#!/usr/bin/env python3
"""Sees every chapter's tests fail: builds its server with one mistake at a time.

usage: common/testing/mutants.py [--sample N] [CHAPTER ...]

Each chapter's mistakes are in its mutants.txt:

    what is wrong
    - lines of the chapter's sources, which occur there exactly once
    + what stands there instead (may be missing)
    ! a test case that must fail, by its id

A mistake that no test notices is a failure of this program, as is one that does not
compile, or whose test fails without it too. Before the first mistake is made, every id is
looked up. --sample: N of each chapter, chosen by the commit. All is done in a copy under
build/mutants; the sources are never touched.
"""
import argparse
import pathlib
import random
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
COPY = ROOT / "build/mutants/source"
BUILD = ROOT / "build/mutants/build"


def parse(path):
    """The mistakes in a mutants.txt: dicts of title, old, new, test and line number."""
    mutants = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        mark, rest = line[:2].strip(), line[2:]
        if mark not in ("-", "+", "!"):
            mutants.append({"title": line, "old": [], "new": [], "test": "", "at": f"{path}:{number}"})
        elif mark == "!":
            mutants[-1]["test"] = rest.strip()
        else:
            mutants[-1]["old" if mark == "-" else "new"].append(rest)
    return mutants


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, **options)


def build(chapter):
    # The test too: in the later chapters it is linked with the server's parts.
    made = run("cmake", "--build", BUILD, "--target", f"{chapter}-server", f"{chapter}-test")
    return made.returncode == 0, made.stdout + made.stderr


def test_ids(chapter):
    """The ids of the chapter's test cases: what stands before the first colon of a name."""
    listed = run(BUILD / chapter / "test", "--list-test-cases", check=True).stdout
    ids = set()
    for name in re.findall(r"^(?!\[doctest\]|===).+", listed, re.M):
        found = re.match("([a-z0-9-]+): ", name)
        if not found or found[1] in ids:
            sys.exit(f"{chapter}: no id, or one that another test case has: \"{name}\"")
        ids.add(found[1])
    return ids


def test(chapter, name):
    """'passed', 'failed' or 'skipped', and what the test said."""
    try:
        tried = run(BUILD / chapter / "test", f"--test-case={name}:*", timeout=100)
    except subprocess.TimeoutExpired:
        return "failed", "it did not end"
    said = tried.stdout + tried.stderr
    if tried.returncode != 0:
        return "failed", said
    return ("skipped" if "skipped: " in said else "passed"), said


def verdict(chapter, mutant):
    """None if the test catches the mistake, else what went wrong."""
    old, new = "\n".join(mutant["old"]), "\n".join(mutant["new"])
    sources = [p for p in sorted((COPY / chapter).glob("*.*")) if p.suffix in (".cpp", ".h")
               and not p.stem.endswith("test") and p.stem != "break"]
    count = sum(p.read_text().count(old) for p in sources) if old else 0
    if count != 1:
        return f"its lines occur {count} times in the chapter's sources"
    source = next(p for p in sources if old in p.read_text())
    sound = source.read_text()
    try:
        source.write_text(sound.replace(old, new))
        made, said = build(chapter)
        if not made:
            return f"it does not compile:\n{said}"
        state, said = test(chapter, mutant["test"])
        return None if state == "failed" else f"the test did not notice: {state}"
    finally:
        source.write_text(sound)


def prepare():
    """A copy of the sources, configured and with the common parts built."""
    shutil.rmtree(COPY, ignore_errors=True)
    COPY.mkdir(parents=True)
    for name in run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT, check=True).stdout.splitlines():
        (COPY / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, COPY / name)  # dated now: what a mistake left in BUILD is rebuilt
    for command in (["cmake", "-S", COPY, "-B", BUILD, "-DCMAKE_BUILD_TYPE=Debug"],
                    ["cmake", "--build", BUILD, "--", "-j2"]):
        made = run(*command)
        if made.returncode != 0:
            sys.exit(made.stdout + made.stderr)


def main():
    parser = argparse.ArgumentParser(description="Sees every chapter's tests fail.")
    parser.add_argument("--sample", type=int, metavar="N", help="N mistakes of each chapter")
    parser.add_argument("chapters", nargs="*", metavar="CHAPTER", help="as 04-epoll; all without")
    arguments = parser.parse_args()
    chapters = arguments.chapters or sorted(p.parent.name for p in ROOT.glob("0?-*/mutants.txt"))
    for chapter in chapters:
        if not (ROOT / chapter / "mutants.txt").is_file():
            parser.error(f"there is no {chapter}/mutants.txt")
    prepare()
    work, unknown = {}, []
    for chapter in chapters:
        if (BUILD / chapter / "skipped").exists():
            print(f"{chapter}: skipped: {(BUILD / chapter / 'skipped').read_text().strip()}")
            continue
        work[chapter] = parse(ROOT / chapter / "mutants.txt")
        ids = test_ids(chapter)
        unknown += [f"{m['at']}: no test case has the id \"{m['test']}\""
                    for m in work[chapter] if m["test"] not in ids]
    if unknown:
        sys.exit("\n".join(unknown))
    chance = random.Random(run("git", "rev-parse", "HEAD", cwd=ROOT).stdout)
    seen = missed = 0
    for chapter, mutants in work.items():
        if arguments.sample and arguments.sample < len(mutants):
            mutants = chance.sample(mutants, arguments.sample)
        for name in dict.fromkeys(mutant["test"] for mutant in mutants):
            state, said = test(chapter, name)
            if state != "passed":
                sys.exit(f"{chapter}: without a mistake, {name}: {state}\n{said}")
        for mutant in mutants:
            problem = verdict(chapter, mutant)
            seen, missed = seen + (problem is None), missed + (problem is not None)
            result = f"seen by {mutant['test']}" if problem is None else f"NOT SEEN ({mutant['at']}): {problem}"
            print(f"{chapter}: {mutant['title']}: {result}", flush=True)
    print(f"{seen} mistakes seen, {missed} not")
    sys.exit(1 if missed or not seen else 0)


if __name__ == "__main__":
    main()

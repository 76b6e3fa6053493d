#!/usr/bin/env python3
"""The full measurement, and what is made of it: tables, charts, figures in the READMEs.

usage: bench.py [--repeats N] [--only NAME] [--out FOLDER] [--keep]   measure, then report
       bench.py --report [--out FOLDER]                               report what was measured
       bench.py --agree FOLDER FOLDER                          compare two measurements
       bench.py --peers                                        who else could take part

Measuring runs build/common/measure a thousand times and more, each for half a second, in
turns: each server once with each setting, then all of them again (what is not a cost, in
each third turn only). So the machine's drift hits all alike, and each figure has a median
and a range. Every run is a line of FOLDER/runs.csv, where FOLDER is build/bench unless
told otherwise, or build/bench-NAME.

Reporting writes charts to common/bench/charts/ (if gnuplot is installed) and replaces
what stands between <!-- bench:NAME --> and <!-- /bench --> in the READMEs; with --keep
it does neither. --only is one of closed, open, rate, idle, memory, slow.
"""
import argparse
import collections
import csv
import datetime
import json
import os
import pathlib
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CHARTS = ROOT / "common/bench/charts"
READMES = ("README.md", "common/bench/README.md", "0?-*/README.md")
SIZES = (100, 1000, 10000)
RATE = 20000  # messages a second, for the latencies of the race
RATES = (5000, 10000, 20000, 40000, 60000, 80000, 100000)
IDLE = (0, 100, 300, 600, 900, 3000, 9000)
MEMORY = (1000, 2000, 5000, 10000)

MODELS = {
    "01-blocking": "one client at a time",
    "02-thread-per-conn": "a thread for each",
    "03-select": "one thread, select",
    "04-epoll": "one thread, epoll",
    "05-kqueue": "one thread, kqueue",
    "06-event-loop": "event loop",
    "07-worker-pool": "event loop, workers",
    "08-netpoller": "parked coroutines",
    "floor": "bare epoll, no state",
    "Go net": "goroutines",
    "cloudwego netpoll": "event loops, goroutines",
    "libuv": "callbacks",
    "Asio": "coroutines, one thread",
}

# --- the servers ----------------------------------------------------------------------


def servers():
    """The command of each server that is built, by name."""
    found = {}
    for name in MODELS:
        program = ROOT / "build" / name / "server"
        if program.exists():
            found[name] = [str(program.relative_to(ROOT))]
    if (ROOT / "build/common/floor-server").exists():
        found["floor"] = ["build/common/floor-server"]
    if (ROOT / "build/common/go-net-server").exists():
        # Its listeners would speak Multipath TCP since Go 1.24, which costs.
        found["Go net"] = ["env", "GODEBUG=multipathtcp=0", "build/common/go-net-server",
                           "-address", "127.0.0.1:{port}"]
    if (ROOT / "build/common/cloudwego-server").exists():
        found["cloudwego netpoll"] = ["build/common/cloudwego-server", "-address", "127.0.0.1:{port}"]
    for name in ("libuv", "Asio"):
        if (ROOT / f"build/common/{name.lower()}-server").exists():
            found[name] = [f"build/common/{name.lower()}-server"]
    return found


def versions(commands):
    """Of the peers: what they are made with, as far as it says."""
    found = {}
    if "Go net" in commands and shutil.which("go"):
        found["Go net"] = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True).stdout.strip()
    if "cloudwego netpoll" in commands:
        text = (ROOT / "common/bench/peers/cloudwego/go.mod").read_text()
        found["cloudwego netpoll"] = re.search(r"cloudwego/netpoll (\S+)", text)[1]
    for name in ("libuv", "Asio"):
        if name in commands:
            text = subprocess.run(commands[name] + ["--help"], cwd=ROOT, capture_output=True, text=True).stdout
            found[name] = re.search(rf"{name} ([0-9.]+)", text)[1]
    return found


def skipped():
    """Why a chapter is not built here, by name."""
    reasons = {}
    for name in MODELS:
        note = ROOT / "build" / name / "skipped"
        if note.exists():
            reasons[name] = note.read_text().strip()
    return reasons


def peers():
    go = shutil.which("go")
    for name, there, how in (
        ("floor (bare epoll)", (ROOT / "build/common/floor-server").exists(), "Linux only"),
        ("Go net", (ROOT / "build/common/go-net-server").exists(),
         "install Go, then rm -r build && ./tour" if not go else "rm -r build && ./tour"),
        ("libuv", (ROOT / "build/common/libuv-server").exists(),
         "install libuv1-dev (Debian), then rm -r build && ./tour"),
        ("Asio", (ROOT / "build/common/asio-server").exists(),
         "install libasio-dev (Debian), then rm -r build && ./tour"),
        ("cloudwego/netpoll", (ROOT / "build/common/cloudwego-server").exists(),
         "its module has to be had: with Go and a network, rm -r build && ./tour"),
    ):
        print(f"{name:<24}{'takes part' if there else 'missing: ' + how}")


# --- measuring ------------------------------------------------------------------------


def settings():
    """What is measured: (experiment, server, flags of measure, flags of the server)."""
    for clients in SIZES:
        for name in MODELS:
            yield "closed", name, {"clients": clients}, []
        for name in MODELS:
            yield "open", name, {"clients": clients, "rate": RATE}, []
    for rate in RATES:
        for name in ("02-thread-per-conn", "03-select", "04-epoll", "08-netpoller", "Go net"):
            yield "rate", name, {"clients": 1000, "rate": rate}, []
    for idle in IDLE:
        for name in ("03-select", "04-epoll", "05-kqueue"):
            if name != "03-select" or idle <= 900:
                yield "idle", name, {"clients": 10, "idle": idle}, []
    for idle in MEMORY:
        for name in MODELS:
            if name not in ("01-blocking", "03-select", "floor"):
                yield "memory", name, {"clients": 1, "idle": idle - 1, "duration": "100ms"}, []
    for slow in (0, 1):
        for name in ("06-event-loop", "07-worker-pool", "08-netpoller"):
            yield ("slow", name, {"clients": 100, "slow": slow, "rate": 2000, "duration": "3s"},
                   ["--work", "300ms"])


def busy_seconds():
    """CPU time that all programs of this machine have used; 0 where nobody says."""
    try:
        fields = [int(x) for x in pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    except OSError:
        return 0
    return (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def children_seconds():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(command, flags):
    """One run: what measure printed, or why it could not run."""
    line = ["build/common/measure"]
    for flag, value in flags.items():
        if value:
            line += [f"--{flag}", str(value)]
    busy, children, start = busy_seconds(), children_seconds(), time.monotonic()
    done = subprocess.run(line + command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.monotonic() - start
    try:
        result = json.loads(done.stdout)
    except ValueError:
        return None, done.stderr.strip()
    if result["mismatched_bytes"] > 0:
        sys.exit(f"{' '.join(command)}: {result['mismatched_bytes']} bytes came back changed")
    # What other programs took from this run, in cores.
    result["others"] = round(
        max(0, busy_seconds() - busy - children_seconds() + children) / seconds, 3)
    return result, ""


def measure_all(out, repeats, only):
    commands = servers()
    todo = [s for s in settings() if s[1] in commands and only in (None, s[0])]
    if not todo:
        sys.exit("bench.py: nothing to measure: is everything built, and --only spelt right?")
    out.mkdir(parents=True, exist_ok=True)
    (out / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n")
    # Costs are compared closely, and so taken in every turn; the rest in each third.
    turns = [(repeat, *s) for repeat in range(repeats) for s in todo if s[0] == "closed" or repeat % 3 == 0]
    terminal, start, full = sys.stderr.isatty(), time.monotonic(), {}
    with open(out / "runs.csv", "w", newline="") as file:
        writer = None
        for done, (repeat, experiment, name, flags, server_flags) in enumerate(turns, 1):
            # A server that did not hold so many does not hold more either.
            if flags["clients"] > full.get(name, flags["clients"]):
                continue
            if terminal:
                left = (time.monotonic() - start) / done * (len(turns) - done)
                print(f"\r\033[K{done}/{len(turns)}, about {left / 60:.0f} min to go: "
                      f"{experiment}, {name}, {flags}", end="", file=sys.stderr, flush=True)
            plan = {"warmup": "300ms", "duration": "500ms"} | flags
            result, problem = measure(commands[name] + server_flags, plan)
            if result is None:
                print(f"\n{experiment}, {name}, {flags}: {problem}", file=sys.stderr)
                continue
            if result["held"] < flags["clients"]:
                full[name] = flags["clients"]
            row = {"experiment": experiment, "server": name, "repeat": repeat} | result
            if writer is None:
                writer = csv.DictWriter(file, row)
                writer.writeheader()
            writer.writerow(row)
            file.flush()
    if terminal:
        print("\r\033[K", end="", file=sys.stderr)
    print(f"{len(turns)} runs in {(time.monotonic() - start) / 60:.0f} min: {out}/runs.csv")


def machine():
    model = platform.processor() or platform.machine()
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
    except OSError:
        pass
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "date": datetime.date.today().isoformat(),
        "versions": versions(servers()),
    }


# --- what came of it ------------------------------------------------------------------


class Results:
    """The runs of one folder, grouped by experiment, server and setting."""

    def __init__(self, folder):
        self.machine = json.loads((folder / "machine.json").read_text())
        self.runs = collections.defaultdict(list)
        with open(folder / "runs.csv", newline="") as file:
            for row in csv.DictReader(file):
                self.runs[self.key(row)].append(row)

    @staticmethod
    def key(row):
        return (row["experiment"], row["server"], int(row["clients"]), int(row["idle"]),
                int(row["rate"]), int(row["slow"]))

    def get(self, experiment, server, clients, idle=0, rate=0, slow=0):
        return self.runs.get((experiment, server, clients, idle, rate, slow), [])

    def servers(self, experiment):
        there = {key[1] for key in self.runs if key[0] == experiment}
        return [name for name in MODELS if name in there]

    def others(self):
        """The median of what other programs took, in cores."""
        values = [float(row["others"]) for rows in self.runs.values() for row in rows]
        return statistics.median(values)

    def where(self):
        m = self.machine
        date = datetime.date.fromisoformat(m["date"])
        text = (f"{m['processor']}, {m['cores']} cores, {m['system']}, {date.day} {date:%B %Y}. "
                "Server and load generator share the cores.")
        if self.others() > 0.05:
            text += f" Other programs used {self.others():.1f} cores meanwhile."
        return text

    def turns(self, experiment):
        return max((len(rows) for key, rows in self.runs.items() if key[0] == experiment), default=0)

    def how(self, experiment):
        n = self.turns(experiment)
        return f"Medians of {n} runs taken in turns, lowest to highest in brackets." if n > 1 else "One run."


def values(rows, field, scale=1.0):
    return [float(row[field]) * scale for row in rows]


def three(rows, field, digits, scale=1.0):
    """6.2 (5.9–6.6)"""
    if not rows:
        return "–"
    all_ = values(rows, field, scale)
    text = f"{statistics.median(all_):,.{digits}f}"
    if len(all_) > 1:
        text += f" ({min(all_):,.{digits}f}–{max(all_):,.{digits}f})"
    return text


def middle(rows, field, digits, scale=1.0):
    return f"{statistics.median(values(rows, field, scale)):,.{digits}f}" if rows else "–"


def table(header, rows, words=1):
    """The first so many columns are words, the others figures."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * words + "---:|" * (len(header) - words)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def limited(rows):
    """Whether the generator was the bottleneck in most of the runs."""
    return sum(row["bottleneck"] != "" for row in rows) * 2 > len(rows)


def holders(results, name, size):
    """The closed loop's runs in which the server held all."""
    return [row for row in results.get("closed", name, size) if int(row["held"]) == size]


def multiples(results, name, size):
    """CPU per request in multiples of the floor's in the same turn: a machine's speed changes."""
    floor = {row["repeat"]: float(row["cpu_us"]) for row in results.get("closed", "floor", size)}
    return [float(row["cpu_us"]) / floor[row["repeat"]]
            for row in holders(results, name, size) if row["repeat"] in floor]


def times_floor(results, name, size):
    ratios = multiples(results, name, size)
    return f"{statistics.median(ratios):.2f}" if ratios else "–"


def times_floor_range(results, name, size):
    ratios = multiples(results, name, size)
    if len(ratios) < 2:
        return times_floor(results, name, size)
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def costs(results, name, size):
    """What servers are compared by: multiples of the floor's cost; microseconds without it."""
    if results.get("closed", "floor", size):
        return multiples(results, name, size)
    return values(holders(results, name, size), "cpu_us")


def label(results, name):
    version = results.machine["versions"].get(name)
    return f"{name} ({version})" if version else name


def overlaps(results, names, size):
    """Which neighbours in the ranking by cost cannot be told apart."""
    ranges = []
    for name in names:
        all_ = costs(results, name, size)
        if all_ and name != "floor":
            ranges.append((statistics.median(all_), min(all_), max(all_), name))
    ranges.sort()
    return [f"{a[3]} and {b[3]}" for a, b in zip(ranges, ranges[1:]) if b[1] <= a[2]]


def race_table(results):
    blocks = []
    for size in SIZES:
        lines = []
        for name in results.servers("closed"):
            closed = results.get("closed", name, size)
            open_ = results.get("open", name, size, rate=RATE)
            if not closed:
                continue
            held = int(statistics.median(values(closed, "held")))
            lines.append([
                label(results, name), f"{held:,}",
                ("≥ " if limited(closed) else "") + middle(closed, "requests_per_second", 0),
                middle(open_, "p50_us", 2, 1e-3),
                middle(open_, "p99_us", 2, 1e-3) + ("*" if limited(open_) else ""),
                middle(open_, "max_us", 1, 1e-3),
                three(closed, "cpu_us", 1), times_floor_range(results, name, size),
                middle(closed, "system_share", 0, 100) + " %",
                middle(closed, "server_threads", 0), middle(closed, "switches", 2),
                middle(closed, "kib_per_connection", 2)])
        header = [f"{size:,} connections", "held", "requests/s", "p50 ms", "p99 ms", "max ms",
                  "CPU µs/request", "× floor", "system", "threads", "switches/request", "KiB/connection"]
        blocks.append(table(header, lines))
        pairs = overlaps(results, results.servers("closed"), size)
        if pairs:
            blocks.append("Ranges of the cost overlap, so these are not ranked: " + "; ".join(pairs) + ".")
    blocks.append(
        "Requests, CPU, switches: closed loop. × floor: of the floor's CPU per request in the "
        f"same turn. Latency: open loop, {RATE:,} messages a second in "
        "all, from when each was due. ≥: the load generator had no more to give. *: it was late "
        f"itself. {results.how('closed')} (Latency: of {results.turns('open')}.) {results.where()}")
    return "\n\n".join(blocks)


def cost_table(results, names):
    def cell(name, size):
        ratio = times_floor(results, name, size)
        cost = middle(holders(results, name, size), "cpu_us", 1)
        return f"{cost} (× {ratio})" if ratio != "–" else cost
    lines = [[label(results, name)] + [cell(name, size) for size in SIZES] +
             [middle(results.get("closed", name, SIZES[0]), "switches", 2),
              middle(largest(results, name), "kib_per_connection", 2)]
             for name in names]
    return (table(["CPU µs/request"] + [f"{size:,} connections" for size in SIZES] +
                  [f"switches/request, {SIZES[0]:,}", "KiB/connection"], lines)
            + f"\n\nMedians of {results.turns('closed')}. ×: the median of the multiples of the floor's cost in the same turn. "
            + results.where())


def largest(results, name):
    """The runs with the most connections."""
    return next((rows for size in reversed(SIZES)
                 for rows in [results.get("closed", name, size)] if rows), [])


def summary_table(results):
    """The race in one line for each server."""
    lines = []
    for name in results.servers("closed"):
        spent = [middle(holders(results, name, size), "cpu_us", 1) for size in SIZES]
        most = largest(results, name)
        open_ = results.get("open", name, SIZES[1], rate=RATE)
        lines.append([label(results, name), MODELS[name], middle(most, "held", 0), *spent,
                      times_floor(results, name, SIZES[-1]),
                      middle(open_, "p99_us", 2, 1e-3) + ("*" if limited(open_) else ""),
                      middle(most, "server_threads", 0), middle(most, "switches", 2),
                      middle(most, "kib_per_connection", 2)])
    header = ["server", "model", "held of 10,000"] + [f"CPU µs/request, {size:,}" for size in SIZES]
    header += ["× floor, 10,000", "p99 ms, 1,000", "threads", f"switches/request, {SIZES[-1]:,}",
               "KiB/connection"]
    late = " *: the load generator was late itself." if any("*" in line[7] for line in lines) else ""
    return (table(header, lines, words=2) + f"\n\nWith 100, 1,000 and 10,000 connections; p99 at {RATE:,} "
            f"messages a second.{late} Medians of {results.turns('closed')} (p99: of {results.turns('open')}). {results.where()}")


def chapter_table(number):
    """The chapter, the one before it, and the yardsticks."""
    def make(results):
        chapters = [name for name in results.servers("closed") if name[0] == "0"]
        mine = [name for name in chapters if name.startswith(number)]
        if not mine:
            return None
        place = chapters.index(mine[0])
        before = chapters[max(0, place - (2 if number == "06" else 1)):place]  # 06 is both
        others = [name for name in ("floor", "Go net") if name in results.servers("closed")]
        return cost_table(results, before + mine + others)
    return make


def system_table(results):
    lines = [[label(results, name), middle(rows, "system_share", 0, 100) + " %",
              three(rows, "cpu_us", 1)]
             for name in results.servers("closed")
             for rows in [results.get("closed", name, SIZES[1]) or largest(results, name)]]
    return (table(["server", "system share of its CPU time", "CPU µs/request"], lines)
            + f"\n\n1,000 connections, or as many as it holds. {results.how('closed')} {results.where()}")


def idle_table(results):
    names = results.servers("idle")
    lines = [[f"{idle:,}"] + [three(results.get("idle", name, 10, idle=idle), "cpu_us", 1) for name in names]
             for idle in IDLE]
    return (table(["idle connections"] + [f"{name}, CPU µs/request" for name in names], lines)
            + f"\n\nTen connections send, each one message at a time. {results.how('idle')} {results.where()}")


def rate_table(results):
    names = results.servers("rate")

    def cell(rows):
        if not rows:
            return "–"
        return three(rows, "p99_us", 2, 1e-3) + ("*" if limited(rows) else "")
    lines = [[f"{rate:,}"] + [cell(results.get("rate", name, 1000, rate=rate)) for name in names]
             for rate in RATES]
    return (table(["messages/s"] + [f"{label(results, name)}, p99 ms" for name in names], lines)
            + "\n\n1,000 connections, open loop, from when each message was due. *: the load "
            f"generator was late itself. {results.how('rate')} {results.where()}")


def memory_table(results):
    lines = [[label(results, name)] +
             [middle(results.get("memory", name, 1, idle=idle - 1), "resident_kib", 1, 1 / 1024)
              for idle in MEMORY] for name in results.servers("memory")]
    return (table(["resident MiB with"] + [f"{idle:,} connections" for idle in MEMORY], lines)
            + "\n\nOf the whole process; every connection has been answered once and is silent. "
            f"{results.where()}")


def slow_table(results):
    lines = []
    for name in results.servers("slow"):
        for slow in (0, 1):
            rows = results.get("slow", name, 100, rate=2000, slow=slow)
            lines.append([name, str(slow)] + [three(rows, f, 1, 1e-3) for f in ("p50_us", "p99_us", "max_us")])
    return (table(["server", "slow clients", "p50 ms", "p99 ms", "max ms"], lines)
            + "\n\nWhat 100 quick clients wait, 2,000 messages a second in all, beside a client "
            f"whose requests take 300 ms each. {results.how('slow')} {results.where()}")


TABLES = {"summary": ("closed", summary_table), "race": ("closed", race_table), "system": ("closed", system_table),
          "idle": ("idle", idle_table), "rate": ("rate", rate_table),
          "memory": ("memory", memory_table), "slow": ("slow", slow_table)}
TABLES |= {name[:2]: ("closed", chapter_table(name[:2])) for name in MODELS if name[0] == "0"}

# --- charts ---------------------------------------------------------------------------

# Distinct for the colour-blind too (Okabe and Ito), on white: legible in light and dark.
COLOURS = {"01-blocking": "#000000", "02-thread-per-conn": "#d55e00", "03-select": "#e69f00",
           "04-epoll": "#0072b2", "05-kqueue": "#56b4e9", "06-event-loop": "#009e73",
           "07-worker-pool": "#cc79a7", "08-netpoller": "#7f3fbf", "floor": "#777777",
           "Go net": "#8c6d31", "cloudwego netpoll": "#3f3f3f", "libuv": "#a0a000", "Asio": "#a05050"}


def plot(name, results, title, xlabel, ylabel, lines, extra=""):
    """lines: (server, [(x in thousands, median, lowest, highest)])"""
    data, plots = "", []
    CHARTS.mkdir(exist_ok=True)
    for i, (server, points) in enumerate(lines):
        block = "".join(f"{' '.join(str(v) for v in point)}\n" for point in points)
        data += f"$d{i} << EOD\n{block}EOD\n"
        style = f"lc rgb '{COLOURS[server]}' lw 2 pt 7 ps 0.5"
        plots.append(f"$d{i} using 1:2 with linespoints {style} title '{label(results, server)}'")
        plots.append(f"$d{i} using 1:2:3:4 with yerrorbars lc rgb '{COLOURS[server]}' lw 1 pt 7 ps 0.5 notitle")
    m = results.machine
    script = f"""
set terminal svg size 960,500 font 'sans-serif,14' background '#ffffff'
set output '{CHARTS / name}.svg'
set title "{title}\\n{m['processor']}, {m['cores']} cores, {m['system']}, {m['date']}" noenhanced
set xlabel '{xlabel}'
set ylabel '{ylabel}'
set grid lc rgb '#cccccc'
set key outside right top noenhanced
{extra}
{data}
plot {', '.join(plots)}
"""
    run_gnuplot(script)


def run_gnuplot(script):
    done = subprocess.run(["gnuplot"], input=script, text=True, capture_output=True)
    if done.returncode != 0:
        sys.exit(f"gnuplot: {done.stderr}")


def points(results, experiment, name, xs, field, scale, key):
    found = []
    for x in xs:
        rows = results.get(experiment, name, **key(x))
        if rows:
            all_ = values(rows, field, scale)
            found.append((x / 1000, statistics.median(all_), min(all_), max(all_)))
    return found


def lines_of(results, experiment, xs, field, scale, key):
    lines = [(name, points(results, experiment, name, xs, field, scale, key))
             for name in results.servers(experiment)]
    return [(name, found) for name, found in lines if found]


def chart_cost(results):
    """CPU per request, a cluster of bars for each server."""
    names = [n for n in results.servers("closed") if n != "01-blocking"]
    data = ""
    for name in names:
        cells = []
        for size in SIZES:
            rows = results.get("closed", name, size)
            all_ = values(rows, "cpu_us") if rows and int(rows[0]["held"]) == size else []
            cells += [statistics.median(all_), min(all_), max(all_)] if all_ else ["NaN"] * 3
        data += f"\"{name}\" {' '.join(str(c) for c in cells)}\n"
    CHARTS.mkdir(exist_ok=True)
    m = results.machine
    shades = ("#9ecae1", "#4292c6", "#084594")
    bars = ", ".join(
        f"$d using {2 + 3 * i}:{3 + 3 * i}:{4 + 3 * i}:xtic(1) title '{size:,} connections' "
        f"lc rgb '{shades[i]}'" for i, size in enumerate(SIZES))
    run_gnuplot(f"""
set terminal svg size 960,500 font 'sans-serif,14' background '#ffffff'
set output '{CHARTS / "cost"}.svg'
set title "What a 64-byte message costs the server\\n{m['processor']}, {m['cores']} cores, {m['system']}, {m['date']}" noenhanced
set ylabel 'CPU time per request, µs'
set yrange [0:*]
set grid y lc rgb '#cccccc'
set style data histograms
set style histogram errorbars gap 1 lw 1
set style fill solid border -1
set xtics rotate by -30 noenhanced
set key outside right top
$d << EOD
{data}EOD
plot {bars}
""")


CHART_TEXTS = {
    "cost": "CPU time per request of each server, at 100, 1,000 and 10,000 connections",
    "rate": "p99 latency against the rate of messages, at 1,000 connections",
    "idle": "CPU time per request against the number of idle connections",
    "memory": "resident memory against the number of connections",
}


def chart(name, results):
    if name == "cost":
        chart_cost(results)
    elif name == "rate":
        plot(name, results, "Latency against offered rate, 1,000 connections", "messages per second, in thousands",
             "p99 latency, ms (log scale)",
             lines_of(results, "rate", RATES, "p99_us", 1e-3, lambda x: {"clients": 1000, "rate": x}),
             "set logscale y")
    elif name == "idle":
        plot(name, results, "The cost of those who say nothing", "idle connections beside 10 busy ones, in thousands",
             "CPU time per request, µs",
             lines_of(results, "idle", IDLE, "cpu_us", 1, lambda x: {"clients": 10, "idle": x}),
             "set yrange [0:*]")
    elif name == "memory":
        plot(name, results, "Memory of silent connections", "connections, in thousands", "resident memory, MiB (log scale)",
             lines_of(results, "memory", MEMORY, "resident_kib", 1 / 1024,
                      lambda x: {"clients": 1, "idle": x - 1}),
             "set logscale y")


def draw_charts(results):
    there = {"cost": "closed", "rate": "rate", "idle": "idle", "memory": "memory"}
    if not shutil.which("gnuplot"):
        print("gnuplot is not installed, so there are no new charts (Debian: gnuplot-nox)")
        return
    for name, experiment in there.items():
        if results.servers(experiment):
            chart(name, results)
            print(f"{(CHARTS / name).relative_to(ROOT)}.svg")


# --- the READMEs ----------------------------------------------------------------------

MARKED = re.compile(r"(<!-- bench:([a-z0-9-]+) -->\n)(.*?)(<!-- /bench -->)", re.DOTALL)


def filling(name, readme, results):
    """What belongs between the markers; None if it was not measured."""
    if name.startswith("chart-") and name[6:] in CHART_TEXTS:
        path = CHARTS / f"{name[6:]}.svg"
        relative = os.path.relpath(path, readme.parent)
        return f"![{CHART_TEXTS[name[6:]]}]({relative})" if path.exists() else None
    if name not in TABLES:
        sys.exit(f"{readme.relative_to(ROOT)}: bench.py knows no '{name}'")
    experiment, make = TABLES[name]
    return make(results) if results.servers(experiment) else None


def rewrite(results):
    for readme in sorted(path for pattern in READMES for path in ROOT.glob(pattern)):
        before = readme.read_text()

        def fill(match):
            text = filling(match[2], readme, results)
            return match[0] if text is None else f"{match[1]}{text}\n{match[4]}"
        after = MARKED.sub(fill, before)
        if after != before:
            readme.write_text(after)
            print(f"{readme.relative_to(ROOT)} has new figures")


def report(out, keep):
    results = Results(out)
    for name in ("summary", "race", "system", "idle", "rate", "memory", "slow"):
        experiment, make = TABLES[name]
        if results.servers(experiment):
            (out / f"{name}.md").write_text(make(results) + "\n")
            print(f"\n{name}\n\n{make(results)}")
    for name, reason in skipped().items():
        print(f"\n{name} is skipped: {reason}")
    print()
    if not keep:
        draw_charts(results)
        rewrite(results)


# --- whether two measurements say the same --------------------------------------------


def agree(one, other):
    """CPU per request, in multiples of the floor's: within 15 %, and ranked alike where the
    ranges are apart."""
    a, b = Results(one), Results(other)
    bad = 0
    for size in SIZES:
        first = {n: costs(a, n, size) for n in a.servers("closed")}
        second = {n: costs(b, n, size) for n in b.servers("closed")}
        names = [n for n in first if first[n] and second.get(n)]
        for n in names:
            ratio = statistics.median(second[n]) / statistics.median(first[n])
            far = abs(ratio - 1) > 0.15
            bad += far
            print(f"{size:>7,}  {n:<20}{statistics.median(first[n]):>8.2f}{statistics.median(second[n]):>8.2f}"
                  f"{ratio:>8.2f}{'   further apart than 15 %' if far else ''}")
        for n in names:
            for m in names:
                if max(first[n]) < min(first[m]) and min(second[n]) > max(second[m]):
                    bad += 1
                    print(f"{size:>7,}  {n} beats {m} in one and loses in the other")
    return bad


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1].split("\n\nMeasuring")[0],
                                     allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", choices=("closed", "open", "rate", "idle", "memory", "slow"))
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--agree", nargs=2, type=pathlib.Path)
    parser.add_argument("--peers", action="store_true")
    options = parser.parse_args()
    if options.peers:
        return peers()
    if options.agree:
        sys.exit(1 if agree(*options.agree) else 0)
    if options.repeats < 1:
        parser.error("--repeats is 1 or more")
    out = options.out or ROOT / "build" / (f"bench-{options.only}" if options.only else "bench")
    try:
        if not options.report:
            measure_all(out, options.repeats, options.only)
        report(out, options.keep)
    except KeyboardInterrupt:
        sys.exit(f"\nstopped; what was measured is in {out}")
    except FileNotFoundError as missing:
        sys.exit(f"bench.py: {missing.filename} is missing: was it measured?")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""The full measurement, and its results: tables, charts, figures in the READMEs.

usage: bench.py [--repeats N] [--only NAME] [--out FOLDER] [--keep]   measure, then report
       bench.py --report [--out FOLDER]                               report an earlier measurement
       bench.py --agree FOLDER FOLDER                          compare two measurements
       bench.py --peers                                        list the other servers

Measuring runs build/common/measure more than a thousand times, each for half a second, in
turns. A turn measures each server once with each setting; only every third turn measures
more than the costs. So the machine's drift affects all servers alike, and each figure has a
median and a range. Every run is a line of FOLDER/runs.csv. FOLDER is build/bench, or
build/bench-NAME, without --out.

Reporting writes charts to common/bench/charts/ (if gnuplot is installed) and replaces the
text between <!-- bench:NAME --> and <!-- /bench --> in the READMEs. With --keep it does
neither. --only is one of closed, open, rate, idle, memory, slow.
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
EXPERIMENTS = ("closed", "open", "rate", "idle", "memory", "slow")
SIZES = (100, 1000, 10000)
RATE = 20000  # messages a second, for the latencies of the race

# Colours that the colour-blind can distinguish (Okabe and Ito), on white: legible in light and dark.
Server = collections.namedtuple("Server", "model colour command how", defaults=("",))
GO = ["-address", "127.0.0.1:{port}"]
# Since Go 1.24 listeners use Multipath TCP unless told otherwise, which costs time.
SERVERS = {name: Server(model, colour, [f"build/{name}/server"]) for name, model, colour in (
    ("01-blocking", "one client at a time", "#000000"),
    ("02-thread-per-conn", "a thread for each", "#d55e00"),
    ("03-select", "one thread, select", "#e69f00"),
    ("04-epoll", "one thread, epoll", "#0072b2"),
    ("05-kqueue", "one thread, kqueue", "#56b4e9"),
    ("06-event-loop", "event loop", "#009e73"),
    ("07-worker-pool", "event loop, workers", "#cc79a7"),
    ("08-netpoller", "parked coroutines", "#7f3fbf"))} | {
    "floor": Server("bare epoll, no state", "#777777", ["build/common/floor-server"], "Linux only"),
    "Go net": Server("goroutines", "#8c6d31",
                     ["env", "GODEBUG=multipathtcp=0", "build/common/go-net-server", *GO],
                     "install Go, then rm -r build && ./tour"),
    "cloudwego netpoll": Server("event loops, goroutines", "#3f3f3f", ["build/common/cloudwego-server", *GO],
                                "with Go and a network for its module, rm -r build && ./tour"),
    "libuv": Server("callbacks", "#a0a000", ["build/common/libuv-server"],
                    "install libuv1-dev (Debian), then rm -r build && ./tour"),
    "Asio": Server("coroutines, one thread", "#a05050", ["build/common/asio-server"],
                   "install libasio-dev (Debian), then rm -r build && ./tour")}
VERSIONS = {"Go net": (["go", "env", "GOVERSION"], r"(\S+)"),
            "cloudwego netpoll": (["cat", "common/bench/peers/cloudwego/go.mod"], r"cloudwego/netpoll (\S+)"),
            "libuv": (["build/common/libuv-server", "--help"], r"libuv ([0-9.]+)"),
            "Asio": (["build/common/asio-server", "--help"], r"Asio ([0-9.]+)")}

# What is measured against a number x: as a table and as a chart.
Curve = collections.namedtuple("Curve", "xs servers flags field scale digits corner caption title xlabel ylabel more")
CURVES = {
    "rate": Curve((5000, 10000, 20000, 40000, 60000, 80000, 100000),
                  ("02-thread-per-conn", "03-select", "04-epoll", "08-netpoller", "Go net"),
                  lambda x: {"clients": 1000, "rate": x}, "p99_us", 1e-3, 2, "p99 ms at messages/s",
                  "1,000 connections, open loop, counted from when each message was due. *: the load generator was late itself.",
                  "Latency against rate of messages, 1,000 connections", "messages per second, in thousands",
                  "p99 latency, ms (log scale)", "set logscale y"),
    "idle": Curve((0, 100, 300, 600, 900, 3000, 9000), ("03-select", "04-epoll", "05-kqueue"),
                  lambda x: {"clients": 10, "idle": x}, "cpu_us", 1, 1, "CPU µs/request beside idle connections",
                  "Ten busy connections, each with one message under way.",
                  "CPU time per request beside idle connections", "idle connections beside 10 busy ones, in thousands",
                  "CPU time per request, µs", "set yrange [0:*]"),
    "memory": Curve((1000, 2000, 5000, 10000), [n for n in SERVERS if n not in ("01-blocking", "03-select", "floor")],
                    lambda x: {"clients": 1, "idle": x - 1, "duration": "100ms"}, "resident_kib", 1 / 1024, 1,
                    "resident MiB with connections",
                    "Memory of the whole process; every connection has been answered once and is silent.",
                    "Memory of idle connections", "connections, in thousands", "resident memory, MiB (log scale)",
                    "set logscale y"),
}


def is_built(name):
    return any((ROOT / word).exists() for word in SERVERS[name].command if word.startswith("build/"))


def output_of(command):
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    except FileNotFoundError:
        return ""


def machine():
    cpu = re.search(r"^model name\s*: (.*)$", output_of(["cat", "/proc/cpuinfo"]), re.MULTILINE)
    found = {name: re.search(pattern, output_of(command))
             for name, (command, pattern) in VERSIONS.items() if is_built(name)}
    return {
        "processor": cpu[1] if cpu else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "date": datetime.date.today().isoformat(),
        "versions": {name: version[1] for name, version in found.items() if version},
    }


def peers():
    for name, server in SERVERS.items():
        if server.how:
            print(f"{name:<24}{'is measured' if is_built(name) else 'missing: ' + server.how}")


# --- measuring ------------------------------------------------------------------------


def settings():
    """What is measured: (experiment, server, flags of measure, flags of the server)."""
    for clients in SIZES:
        yield from (("closed", name, {"clients": clients}, []) for name in SERVERS)
        yield from (("open", name, {"clients": clients, "rate": RATE}, []) for name in SERVERS)
    for experiment, curve in CURVES.items():
        for x in curve.xs:
            yield from ((experiment, name, curve.flags(x), []) for name in curve.servers
                        if (experiment, name) != ("idle", "03-select") or x <= 900)
    for slow in (0, 1):
        for name in ("06-event-loop", "07-worker-pool", "08-netpoller"):
            yield ("slow", name, {"clients": 100, "slow": slow, "rate": 2000, "duration": "3s"},
                   ["--work", "300ms"])


def other_seconds():
    """CPU time used by all other programs of this machine; 0 without /proc."""
    try:
        fields = [int(x) for x in pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    except OSError:
        return 0
    ours = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = sum(fields[:8]) - fields[3] - fields[4]
    return busy / os.sysconf("SC_CLK_TCK") - ours.ru_utime - ours.ru_stime


def measure(command, flags):
    """One run: what measure printed and "", or None and why it could not run."""
    line = ["build/common/measure"]
    for flag, value in flags.items():
        line += [f"--{flag}", str(value)] if value else []
    others, start = other_seconds(), time.monotonic()
    done = subprocess.run(line + command, cwd=ROOT, capture_output=True, text=True)
    try:
        result = json.loads(done.stdout)
    except ValueError:
        return None, done.stderr.strip()
    if result["mismatched_bytes"] > 0:
        sys.exit(f"{' '.join(command)}: {result['mismatched_bytes']} bytes came back changed")
    # What other programs used meanwhile, in cores.
    result["others"] = round(max(0, other_seconds() - others) / (time.monotonic() - start), 3)
    return result, ""


def measure_all(out, repeats, only):
    todo = [s for s in settings() if is_built(s[1]) and only in (None, s[0])]
    if not todo:
        sys.exit("bench.py: nothing to measure: is everything built, and is --only right?")
    out.mkdir(parents=True, exist_ok=True)
    (out / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n")
    # Costs are compared closely, so every turn takes them; every third turn takes the rest.
    turns = [(repeat, *s) for repeat in range(repeats) for s in todo if s[0] == "closed" or repeat % 3 == 0]
    terminal, start, full = sys.stderr.isatty(), time.monotonic(), {}
    with open(out / "runs.csv", "w", newline="") as file:
        writer = None
        for done, (repeat, experiment, name, flags, server_flags) in enumerate(turns, 1):
            # A server that did not hold fewer connections is not loaded with more.
            if flags["clients"] > full.get(name, flags["clients"]):
                continue
            if terminal:
                left = (time.monotonic() - start) / done * (len(turns) - done)
                print(f"\r\033[K{done}/{len(turns)}, about {left / 60:.0f} min left: "
                      f"{experiment}, {name}, {flags}", end="", file=sys.stderr, flush=True)
            result, problem = measure(SERVERS[name].command + server_flags,
                                      {"warmup": "300ms", "duration": "500ms"} | flags)
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


# --- results and tables ---------------------------------------------------------------


class Results:
    """The runs of one folder, grouped by experiment, server and setting."""

    def __init__(self, folder):
        self.machine = json.loads((folder / "machine.json").read_text())
        self.runs = collections.defaultdict(list)
        with open(folder / "runs.csv", newline="") as file:
            for row in csv.DictReader(file):
                setting = (int(row[flag]) for flag in ("clients", "idle", "rate", "slow"))
                self.runs[row["experiment"], row["server"], *setting].append(row)

    def get(self, experiment, server, clients, idle=0, rate=0, slow=0, **_):
        return self.runs.get((experiment, server, clients, idle, rate, slow), [])

    def servers(self, experiment):
        there = {key[1] for key in self.runs if key[0] == experiment}
        return [name for name in SERVERS if name in there]

    def where(self):
        m, date = self.machine, datetime.date.fromisoformat(self.machine["date"])
        text = (f"{m['processor']}, {m['cores']} cores, {m['system']}, {date.day} {date:%B %Y}. "
                "Server and load generator share the cores.")
        others = statistics.median(float(row["others"]) for rows in self.runs.values() for row in rows)
        return text + (f" Other programs used {others:.1f} cores meanwhile." if others > 0.05 else "")

    def turns(self, experiment):
        return max((len(rows) for key, rows in self.runs.items() if key[0] == experiment), default=0)

    def how(self, experiment):
        n = self.turns(experiment)
        return f"Medians of {n} runs taken in turns, lowest to highest in brackets." if n > 1 else "One run."

    def label(self, name):
        version = self.machine["versions"].get(name)
        return f"{name} ({version})" if version else name


def values(rows, field, scale=1.0):
    return [float(row[field]) * scale for row in rows]


def figure(numbers, digits, ranged=False):
    """6.2, or 6.2 (5.9–6.6)"""
    if not numbers:
        return "–"
    text = f"{statistics.median(numbers):,.{digits}f}"
    return text + (f" ({min(numbers):,.{digits}f}–{max(numbers):,.{digits}f})" if ranged and len(numbers) > 1 else "")


def middle(rows, field, digits, scale=1.0):
    return figure(values(rows, field, scale), digits)


def three(rows, field, digits, scale=1.0):
    return figure(values(rows, field, scale), digits, True)


def star(rows):
    """Whether the generator was the bottleneck in most of the runs."""
    return "*" if sum(row["bottleneck"] != "" for row in rows) * 2 > len(rows) else ""


def table(header, rows, words=1):
    """The first `words` columns are words, the others figures."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * words + "---:|" * (len(header) - words)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def holders(results, name, size):
    """The closed loop's runs in which the server held all connections."""
    return [row for row in results.get("closed", name, size) if int(row["held"]) == size]


def largest(results, name):
    """The largest number of connections that the server was loaded with."""
    return next(size for size in reversed(SIZES) if results.get("closed", name, size))


def multiples(results, name, size):
    """CPU per request in multiples of the floor's in the same turn, as a machine's speed changes."""
    floor = {row["repeat"]: float(row["cpu_us"]) for row in results.get("closed", "floor", size)}
    return [float(row["cpu_us"]) / floor[row["repeat"]]
            for row in holders(results, name, size) if row["repeat"] in floor]


def times_floor(results, name, size):
    return figure(multiples(results, name, size), 2)


def costs(results, name, size):
    """The figure that ranks servers: multiples of the floor's cost, or microseconds without one."""
    if results.get("closed", "floor", size):
        return multiples(results, name, size)
    return values(holders(results, name, size), "cpu_us")


def overlaps(results, names, size):
    """The neighbours in the ranking by cost whose ranges overlap."""
    every = [(costs(results, name, size), name) for name in names if name != "floor"]
    ranges = sorted((statistics.median(all_), min(all_), max(all_), name) for all_, name in every if all_)
    return [f"{a[3]} and {b[3]}" for a, b in zip(ranges, ranges[1:]) if b[1] <= a[2]]


def cells(results, name, size):
    """All figures of one server with so many connections, by the titles of their columns."""
    closed, open_ = results.get("closed", name, size), results.get("open", name, size, rate=RATE)
    return {
        "held": middle(closed, "held", 0),
        "requests/s": ("≥ " if star(closed) else "") + middle(closed, "requests_per_second", 0),
        "p50 ms": middle(open_, "p50_us", 2, 1e-3),
        "p99 ms": middle(open_, "p99_us", 2, 1e-3) + star(open_),
        "max ms": middle(open_, "max_us", 1, 1e-3),
        "CPU µs/request": three(closed, "cpu_us", 1),
        "× floor": figure(multiples(results, name, size), 2, True),
        "system": middle(closed, "system_share", 0, 100) + " %",
        "threads": middle(closed, "server_threads", 0),
        "switches/request": middle(closed, "switches", 2),
        "KiB/connection": middle(closed, "kib_per_connection", 2)}


def race_table(results):
    names, blocks = results.servers("closed"), []
    for size in SIZES:
        rows = {name: cells(results, name, size) for name in names if results.get("closed", name, size)}
        blocks.append(table([f"{size:,} connections", *cells(results, "", size)],
                            [[results.label(name), *row.values()] for name, row in rows.items()]))
        pairs = overlaps(results, names, size)
        if pairs:
            blocks.append("Not ranked, because their ranges of the cost overlap: " + "; ".join(pairs) + ".")
    blocks.append(
        "Requests, CPU, switches: closed loop. × floor: CPU per request in multiples of the floor's in the "
        f"same turn. Latency: open loop, {RATE:,} messages a second, counted from when each was due. "
        "≥: the load generator was at its limit. *: it was late itself. "
        f"{results.how('closed')} (Latency: {results.turns('open')} runs.) {results.where()}")
    return "\n\n".join(blocks)


def cost(results, name, size):
    return middle(holders(results, name, size), "cpu_us", 1)


def cost_table(results, names):
    def cell(name, size):
        ratio = times_floor(results, name, size)
        return cost(results, name, size) + (f" (× {ratio})" if ratio != "–" else "")
    lines = [[results.label(name)] + [cell(name, size) for size in SIZES] +
             [cells(results, name, SIZES[0])["switches/request"],
              cells(results, name, largest(results, name))["KiB/connection"]] for name in names]
    header = ["CPU µs/request"] + [f"{size:,} connections" for size in SIZES]
    return (table(header + [f"switches/request, {SIZES[0]:,}", "KiB/connection"], lines)
            + f"\n\nMedians of {results.turns('closed')} runs. ×: the median of the multiples of the floor's cost in the same turn. "
            + results.where())


def summary_table(results):
    """The race in one line for each server."""
    lines = []
    for name in results.servers("closed"):
        most = cells(results, name, largest(results, name))
        lines.append([results.label(name), SERVERS[name].model, most["held"],
                      *(cost(results, name, size) for size in SIZES), times_floor(results, name, SIZES[-1]),
                      cells(results, name, SIZES[1])["p99 ms"],
                      most["threads"], most["switches/request"], most["KiB/connection"]])
    header = ["server", "model", "held of 10,000"] + [f"CPU µs/request, {size:,}" for size in SIZES]
    header += ["× floor, 10,000", "p99 ms, 1,000", "threads", f"switches/request, {SIZES[-1]:,}", "KiB/connection"]
    late = " *: the load generator was late itself." if any("*" in line[7] for line in lines) else ""
    return (table(header, lines, words=2) + f"\n\nWith 100, 1,000 and 10,000 connections; p99 at {RATE:,} "
            f"messages a second.{late} Medians of {results.turns('closed')} runs (p99: {results.turns('open')}). {results.where()}")


def chapter_table(number):
    """The chapter, its predecessor, the floor and Go."""
    def make(results):
        names = results.servers("closed")
        mine = next((i for i, name in enumerate(names) if name.startswith(number)), None)
        if mine is None:
            return None
        before = names[max(0, mine - (2 if number == "06" else 1)):mine]  # 06 has two
        return cost_table(results, before + [names[mine]] + [n for n in ("floor", "Go net") if n in names])
    return make


def system_table(results):
    names = results.servers("closed")
    rows = [cells(results, name, min(SIZES[1], largest(results, name))) for name in names]
    return (table(["server", "kernel's share of its CPU time", "CPU µs/request"],
                  [[results.label(name), row["system"], row["CPU µs/request"]] for name, row in zip(names, rows)])
            + f"\n\n1,000 connections, or as many as the server holds. {results.how('closed')} {results.where()}")


def curve_table(experiment):
    def make(results):
        curve = CURVES[experiment]
        lines = [[results.label(name)] + [three(rows, curve.field, curve.digits, curve.scale) + (star(rows) if "*" in curve.caption else "")
                                          for x in curve.xs for rows in [results.get(experiment, name, **curve.flags(x))]]
                 for name in results.servers(experiment)]
        return (table([curve.corner] + [f"{x:,}" for x in curve.xs], lines)
                + f"\n\n{curve.caption} {results.how(experiment)} {results.where()}")
    return make


def slow_table(results):
    lines = [[name, str(slow)] + [three(results.get("slow", name, 100, rate=2000, slow=slow), field, 1, 1e-3)
                                  for field in ("p50_us", "p99_us", "max_us")]
             for name in results.servers("slow") for slow in (0, 1)]
    return (table(["server", "slow clients", "p50 ms", "p99 ms", "max ms"], lines)
            + "\n\nLatency of 100 quick clients, which send 2,000 messages a second together, beside a "
            f"client whose requests take 300 ms each. {results.how('slow')} {results.where()}")


TABLES = {"summary": ("closed", summary_table), "race": ("closed", race_table), "system": ("closed", system_table),
          **{name: (name, curve_table(name)) for name in CURVES}, "slow": ("slow", slow_table)}
TABLES |= {name[:2]: ("closed", chapter_table(name[:2])) for name in SERVERS if name[0] == "0"}

# --- charts ---------------------------------------------------------------------------

CHART_TEXTS = {  # alternative texts
    "cost": "CPU time per request of each server, at 100, 1,000 and 10,000 connections",
    "rate": "p99 latency against the rate of messages, at 1,000 connections",
    "idle": "CPU time per request against the number of idle connections",
    "memory": "resident memory against the number of connections",
}
def spread(numbers):
    """Median, lowest and highest, in gnuplot's order."""
    return (statistics.median(numbers), min(numbers), max(numbers)) if numbers else ("NaN",) * 3


def gnuplot(name, results, title, ylabel, blocks, plots, more):
    """blocks: the lines of $d0, $d1 …, each a list of words."""
    m = results.machine
    data = "".join(f"$d{i} << EOD\n" + "".join(" ".join(map(str, line)) + "\n" for line in block) + "EOD\n"
                   for i, block in enumerate(blocks))
    CHARTS.mkdir(exist_ok=True)
    done = subprocess.run(["gnuplot"], text=True, capture_output=True, input=f"""
set terminal svg size 960,500 font 'sans-serif,14' background '#ffffff'
set output '{CHARTS / name}.svg'
set title "{title}\\n{m['processor']}, {m['cores']} cores, {m['system']}, {m['date']}" noenhanced
set ylabel '{ylabel}'
set key outside right top noenhanced
{more}
{data}
plot {', '.join(plots)}
""")
    if done.returncode != 0:
        sys.exit(f"gnuplot: {done.stderr}")


def draw_cost(results):
    """CPU per request, a cluster of bars for each server."""
    lines = [[f'"{name}"'] + [v for size in SIZES for v in spread(values(holders(results, name, size), "cpu_us"))]
             for name in results.servers("closed") if name != "01-blocking"]
    bars = [f"$d0 using {2 + 3 * i}:{3 + 3 * i}:{4 + 3 * i}:xtic(1) title '{size:,} connections' lc rgb '{shade}'"
            for i, (size, shade) in enumerate(zip(SIZES, ("#9ecae1", "#4292c6", "#084594")))]
    gnuplot("cost", results, "CPU time per request of 64 bytes", "CPU time per request, µs", [lines], bars,
            "set yrange [0:*]\nset grid y lc rgb '#cccccc'\nset style data histograms\n"
            "set style histogram errorbars gap 1 lw 1\nset style fill solid border -1\n"
            "set xtics rotate by -30 noenhanced")


def draw_curve(experiment, results):
    curve, blocks, plots = CURVES[experiment], [], []
    for name in results.servers(experiment):
        ys = [(x, values(results.get(experiment, name, **curve.flags(x)), curve.field, curve.scale)) for x in curve.xs]
        data, colour = f"$d{len(blocks)} using", f"lc rgb '{SERVERS[name].colour}'"
        plots.append(f"{data} 1:2 with linespoints {colour} lw 2 pt 7 ps 0.5 title '{results.label(name)}'")
        plots.append(f"{data} 1:2:3:4 with yerrorbars {colour} lw 1 pt 7 ps 0.5 notitle")
        blocks.append([(x / 1000, *spread(y)) for x, y in ys if y])
    gnuplot(experiment, results, curve.title, curve.ylabel, blocks, plots,
            f"set xlabel '{curve.xlabel}'\nset grid lc rgb '#cccccc'\n{curve.more}")


def draw_charts(results):
    if not shutil.which("gnuplot"):
        print("gnuplot is not installed: no new charts (Debian: gnuplot-nox)")
        return
    for name in CHART_TEXTS:
        if results.servers("closed" if name == "cost" else name):
            if name == "cost":
                draw_cost(results)
            else:
                draw_curve(name, results)
            print(f"{(CHARTS / name).relative_to(ROOT)}.svg")


# --- the READMEs ----------------------------------------------------------------------

MARKED = re.compile(r"(<!-- bench:([a-z0-9-]+) -->\n)(.*?)(<!-- /bench -->)", re.DOTALL)


def filling(name, readme, results):
    """The text between the markers; None if it was not measured."""
    chart = name.removeprefix("chart-")
    if name != chart and chart in CHART_TEXTS:
        path = CHARTS / f"{chart}.svg"
        return f"![{CHART_TEXTS[chart]}]({os.path.relpath(path, readme.parent)})" if path.exists() else None
    if name not in TABLES:
        sys.exit(f"{readme.relative_to(ROOT)}: bench.py knows no '{name}'")
    experiment, make = TABLES[name]
    return make(results) if results.servers(experiment) else None


def rewrite(results):
    for readme in sorted(path for pattern in READMES for path in ROOT.glob(pattern)):
        def fill(match):
            text = filling(match[2], readme, results)
            return match[0] if text is None else f"{match[1]}{text}\n{match[4]}"
        before = readme.read_text()
        after = MARKED.sub(fill, before)
        if after != before:
            readme.write_text(after)
            print(f"{readme.relative_to(ROOT)} has new figures")


def report(out, keep):
    results = Results(out)
    for name, (experiment, make) in TABLES.items():
        if name[0] != "0" and results.servers(experiment):
            text = make(results)
            (out / f"{name}.md").write_text(text + "\n")
            print(f"\n{name}\n\n{text}")
    for note in sorted(ROOT.glob("build/0?-*/skipped")):
        print(f"\n{note.parent.name} is skipped: {note.read_text().strip()}")
    print()
    if not keep:
        draw_charts(results)
        rewrite(results)


# --- comparing two measurements -------------------------------------------------------


def agree(one, other):
    """Compares CPU per request, in multiples of the floor's. Returns how many figures differ by
    more than 15 %, plus how many pairs changed places though their ranges are apart."""
    a, b = Results(one), Results(other)
    bad = 0
    for size in SIZES:
        both = {n: (costs(a, n, size), costs(b, n, size)) for n in a.servers("closed")}
        both = {n: pair for n, pair in both.items() if all(pair)}
        for n, pair in both.items():
            first, second = map(statistics.median, pair)
            far = abs(second / first - 1) > 0.15
            bad += far
            print(f"{size:>7,}  {n:<20}{first:>8.2f}{second:>8.2f}{second / first:>8.2f}"
                  f"{'   differ by more than 15 %' if far else ''}")
        for n, (first, second) in both.items():
            for m, (first_m, second_m) in both.items():
                if max(first) < min(first_m) and min(second) > max(second_m):
                    bad += 1
                    print(f"{size:>7,}  {n} beats {m} in one and loses in the other")
    return bad


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1].split("\n\nMeasuring")[0],
                                     allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", choices=EXPERIMENTS)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--agree", nargs=2, type=pathlib.Path)
    for flag in ("--report", "--keep", "--peers"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args()
    if options.peers:
        return peers()
    if options.agree:
        sys.exit(1 if agree(*options.agree) else 0)
    if options.repeats < 1:
        parser.error("--repeats must be 1 or more")
    out = options.out or ROOT / "build" / (f"bench-{options.only}" if options.only else "bench")
    try:
        if not options.report:
            measure_all(out, options.repeats, options.only)
        report(out, options.keep)
    except KeyboardInterrupt:
        sys.exit(f"\nstopped; the finished runs are in {out}")
    except FileNotFoundError as missing:
        sys.exit(f"bench.py: {missing.filename} is missing: has it been measured?")


if __name__ == "__main__":
    main()

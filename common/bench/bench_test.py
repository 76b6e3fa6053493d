#!/usr/bin/env python3
"""Tests bench.py with invented runs, so that the answers are known."""
import csv
import json
import pathlib
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
import bench

RUN = {"idle": 0, "slow": 0, "rate": 0, "requests_per_second": 50000, "bottleneck": "",
       "system_share": 0.9, "server_threads": 1, "switches": 0.01, "kib_per_connection": 0.25,
       "p50_us": 100, "p99_us": 2000, "max_us": 9000, "others": 0.0, "resident_kib": 4096}


def runs(experiment, server, clients, cpu, **more):
    """One run for each of the costs in `cpu`."""
    return [{"experiment": experiment, "server": server, "repeat": i, "clients": clients,
             "held": clients, "cpu_us": us} | RUN | more for i, us in enumerate(cpu)]


class BenchTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = pathlib.Path(self.folder.name)
        self.addCleanup(self.folder.cleanup)

    def results(self, rows, name="one"):
        folder = self.path / name
        folder.mkdir()
        (folder / "machine.json").write_text(json.dumps(
            {"processor": "Z80", "cores": 2, "system": "CP/M 2.2", "date": "2026-11-05",
             "versions": {"Go net": "go1.0"}}))
        with open(folder / "runs.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, {k: 0 for row in rows for k in row})
            writer.writeheader()
            writer.writerows(rows)
        return bench.Results(folder)

    def test_a_cell_is_the_median_and_the_range(self):
        text = bench.race_table(self.results(runs("closed", "04-epoll", 100, [7.0, 5.0, 6.0])))
        self.assertIn("| 6.0 (5.0–7.0) |", text)
        self.assertIn("| 04-epoll | 100 | 50,000 |", text)
        self.assertIn("Z80, 2 cores, CP/M 2.2, 5 November 2026.", text)
        self.assertNotIn("≥ 50,000", text)
        self.assertNotIn("Other programs", text)

    def test_a_busy_generator_and_other_programs_are_mentioned(self):
        text = bench.race_table(self.results(runs(
            "closed", "04-epoll", 100, [5.0], bottleneck="its busiest thread", others=0.4)))
        self.assertIn("≥ 50,000", text)
        self.assertIn("Other programs used 0.4 cores meanwhile.", text)

    def test_servers_whose_ranges_overlap_are_not_ranked(self):
        results = self.results(runs("closed", "03-select", 100, [5.0, 6.0, 7.0]) +
                               runs("closed", "04-epoll", 100, [6.5, 7.5, 8.0]) +
                               runs("closed", "02-thread-per-conn", 100, [12.0, 13.0, 14.0]))
        self.assertEqual(bench.overlaps(results, results.servers("closed"), 100),
                         ["03-select and 04-epoll"])

    def test_a_slow_turn_for_all_servers_makes_no_overlap(self):
        results = self.results(runs("closed", "floor", 100, [5.0, 7.0]) +
                               runs("closed", "03-select", 100, [5.5, 7.7]) +
                               runs("closed", "04-epoll", 100, [6.0, 8.4]))
        self.assertEqual(bench.overlaps(results, results.servers("closed"), 100), [])
        self.assertIn("| 6.6 (5.5–7.7) | 1.10 (1.10–1.10) |", bench.race_table(results))

    def test_a_server_that_does_not_hold_all_connections_has_no_cost_there(self):
        text = bench.cost_table(self.results(runs("closed", "03-select", 10000, [5.0], held=1018)),
                                ["03-select"])
        self.assertIn("| 03-select | – | – | – |", text)

    def test_multiples_of_the_floor_are_taken_within_a_turn(self):
        results = self.results(runs("closed", "04-epoll", 10000, [5.0, 20.0, 6.6]) +
                               runs("closed", "floor", 10000, [5.0, 10.0, 6.0]))
        self.assertEqual(bench.times_floor(results, "04-epoll", 10000), "1.10")
        self.assertEqual(bench.times_floor(results, "04-epoll", 100), "–")
        self.assertIn("| 04-epoll | – | – | 6.6 (× 1.10) |",
                      bench.cost_table(results, ["04-epoll"]))

    def test_a_chapters_table_includes_its_predecessor(self):
        results = self.results([row for name in ("02-thread-per-conn", "03-select", "04-epoll", "floor")
                                for row in runs("closed", name, 100, [5.0])])
        text = bench.chapter_table("04")(results)
        self.assertIn("| 03-select |", text)
        self.assertIn("| 04-epoll |", text)
        self.assertIn("| floor |", text)
        self.assertNotIn("| 02-thread", text)
        self.assertIsNone(bench.chapter_table("08")(results))

    def test_markers_are_filled_and_the_rest_is_left_alone(self):
        results = self.results(runs("closed", "04-epoll", 100, [5.0]))
        bench.ROOT, root = self.path, bench.ROOT
        self.addCleanup(setattr, bench, "ROOT", root)
        readme = self.path / "README.md"
        readme.write_text("before\n<!-- bench:race -->\nold\n<!-- /bench -->\nbetween\n"
                          "<!-- bench:slow -->\nnot measured\n<!-- /bench -->\nafter\n")
        bench.rewrite(results)
        text = readme.read_text()
        self.assertTrue(text.startswith("before\n<!-- bench:race -->\n| 100 connections |"))
        self.assertNotIn("old", text)
        self.assertTrue(text.endswith("\n<!-- /bench -->\nbetween\n<!-- bench:slow -->\n"
                                      "not measured\n<!-- /bench -->\nafter\n"))
        bench.rewrite(results)
        self.assertEqual(readme.read_text(), text)  # filling twice changes nothing

    def test_two_measurements_are_compared(self):
        def folder(name, select, epoll, speed=1.0):
            self.results(runs("closed", "floor", 100, [speed, speed]) +
                         runs("closed", "03-select", 100, [speed * cost for cost in select]) +
                         runs("closed", "04-epoll", 100, [speed * cost for cost in epoll]), name)
            return self.path / name
        a = folder("a", [5.0, 5.1], [6.0, 6.1])
        self.assertEqual(bench.agree(a, folder("b", [5.2, 5.3], [6.2, 6.4])), 0)
        self.assertEqual(bench.agree(a, folder("s", [5.2, 5.3], [6.2, 6.4], 1.4)), 0)  # a slow machine
        self.assertEqual(bench.agree(a, folder("c", [6.0, 6.1], [6.0, 6.1])), 1)  # 20 % off
        self.assertEqual(bench.agree(a, folder("d", [5.7, 5.7], [5.5, 5.5])), 1)  # the other way round
        self.assertEqual(bench.agree(a, folder("e", [5.6, 5.8], [5.5, 5.7])), 0)  # the ranges overlap

    def test_without_a_floor_microseconds_are_compared(self):
        for name, cost in (("a", 5.0), ("b", 6.0)):
            self.results(runs("closed", "04-epoll", 100, [cost]), name)
        self.assertEqual(bench.agree(self.path / "a", self.path / "b"), 1)


if __name__ == "__main__":
    unittest.main()

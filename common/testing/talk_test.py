#!/usr/bin/env python3
"""Tests talk.py on a server in this process, whose mistakes are made on purpose."""
import pathlib
import socket
import subprocess
import sys
import threading
import unittest

TALK = pathlib.Path(__file__).with_name("talk.py")


def echo(connection):
    while data := connection.recv(2**16):
        connection.sendall(data)


class TalkTest(unittest.TestCase):
    def server(self, handle):
        """Calls `handle` with one connection after the other. Returns the port."""
        listener = socket.create_server(("127.0.0.1", 0))

        def serve():
            while True:
                try:
                    with listener.accept()[0] as connection:
                        handle(connection)
                except OSError:
                    return  # the listener is closed, or the client is gone
        thread = threading.Thread(target=serve)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(listener.close)
        self.addCleanup(listener.shutdown, socket.SHUT_RDWR)
        return str(listener.getsockname()[1])

    def start(self, *arguments):
        talk = subprocess.Popen([sys.executable, TALK, *arguments], text=True, stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(talk.kill)
        limit = threading.Timer(60, talk.kill)
        limit.start()
        self.addCleanup(limit.cancel)
        return talk

    def run_to_end(self, *arguments, typed=""):
        talk = self.start(*arguments)
        out, err = talk.communicate(typed)
        return talk.returncode, out, err

    def test_without_flags_each_line_is_echoed_and_end_of_input_half_closes(self):
        code, out, err = self.run_to_end(self.server(echo), typed="one\ntwo\n")
        self.assertEqual((code, out), (0, "one\ntwo\n"))
        self.assertIn("closed by the server", err)

    def test_read_late_leaves_the_bytes_with_the_kernel_and_loses_none(self):
        code, out, err = self.run_to_end(self.server(echo), "--send", "16M", "--half-close", "--read-late", "3s")
        self.assertEqual((code, out), (0, ""))
        self.assertRegex(err, r"sent [0-9,]+ of 16,777,216 bytes; 0 came back\n")
        self.assertIn("sent 16,777,216 of 16,777,216 bytes; 16,777,216 came back\nclosed by the server\n", err)

    def test_a_changed_byte_is_reported(self):
        def change(connection):
            connection.sendall(connection.recv(1000)[:-1] + b"!")
            connection.recv(1)
        code, _, err = self.run_to_end(self.server(change), "--send", "1000")
        self.assertEqual(code, 1)
        self.assertIn("other bytes came back", err)

    def test_lost_bytes_are_reported(self):
        def lose(connection):
            data = b""
            while piece := connection.recv(2**16):
                data += piece
            connection.sendall(data[:-1])
        code, _, err = self.run_to_end(self.server(lose), "--send", "1K", "--half-close")
        self.assertEqual(code, 1)
        self.assertIn("1,023 came back", err)

    def test_of_many_clients_one_is_served_and_the_next_when_it_is_closed(self):
        talk = self.start(self.server(echo), "--clients", "3")
        self.assertIn("1 served: 1\n", iter(talk.stderr.readline, ""))
        self.assertEqual(talk.stderr.readline(), "2 waiting: 2 3\n")
        print(1, file=talk.stdin, flush=True)
        self.assertIn("1 served: 2\n", iter(talk.stderr.readline, ""))
        self.assertEqual(talk.stderr.readline(), "1 waiting: 3\n")
        _, err = talk.communicate("4\n")
        self.assertIn("'4' is not the number of an open connection", err)
        self.assertEqual(talk.returncode, 0)

    def test_bad_input_is_refused_in_one_line(self):
        for code, arguments in [(2, ["--send", "16X"]), (2, ["--clients", "0"]), (2, ["--read-late", "3"]),
                                (2, ["65536"]), (2, ["--what"]), (1, ["127.0.0.1:1"])]:
            with self.subTest(arguments):
                found, out, err = self.run_to_end(*arguments)
                self.assertEqual((found, out), (code, ""))
                self.assertRegex(err, r"^\./tour talk: .+\n$")


if __name__ == "__main__":
    unittest.main()

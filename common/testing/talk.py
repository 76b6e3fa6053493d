#!/usr/bin/env python3
"""A TCP client for experiments by hand: nc, but the same on every system.

usage: ./tour talk [HOST:PORT] [flags]

Sends each line that you type, and prints what comes back. Ctrl-D (end of input) half-closes:
nothing more is sent, and the client exits when the server closes. Ctrl-C closes at once.
HOST:PORT is 127.0.0.1:8080 if not given.

  --send SIZE        first send that many bytes (100, 64K, 16M), and compare what comes back
  --read-late TIME   read nothing for that long (500ms, 3s, 5m) after connecting
  --half-close       half-close after --send, without waiting for the end of input
  --clients N        N connections, numbered from 1; each sends "hello", or what --send says.
                     Type a number to close that connection
  --help             print this and exit

Exit code: 1 if it cannot connect, or if bytes were changed or lost; 2 for a wrong flag.
"""
import argparse
import os
import re
import select
import socket
import sys
import time

PIECE = 2**16  # bytes to send or receive in one call
PAUSE = 0.5  # seconds without traffic after which the state is reported


def say(text):
    print(text, file=sys.stderr, flush=True)


def take(form, text, what):
    """The parts of a flag's value, or one line on what the flag takes."""
    match = re.fullmatch(form, text)
    if not match:
        raise argparse.ArgumentTypeError(f"takes {what}, not '{text}'")
    return match.groups()


def size(text):
    number, unit = take(r"(\d+)([KMG]?)", text, "a number of bytes such as 100, 64K or 16M")
    return int(number) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[unit]


def duration(text):
    number, unit = take(r"(\d+)(ms|s|m)", text, "a time such as 500ms, 3s or 5m")
    return int(number) * {"ms": 0.001, "s": 1, "m": 60}[unit]


def count(text):  # select takes descriptors below 1024
    return int(*take(r"([1-9]\d{0,2})", text, "a number from 1 to 999"))


def endpoint(text):
    host, port = take(r"(?:\[?(.*?)\]?:)?(\d{1,5})", text, "HOST:PORT")
    if int(port) > 65535:
        raise argparse.ArgumentTypeError(f"there is no port {port}")
    return host or "127.0.0.1", int(port)


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"./tour talk: {message.removeprefix('argument ')} (./tour talk --help)\n")


class Client:
    """A connection. Its first `total` bytes repeat `pattern`; what is typed comes after them."""

    def __init__(self, address, pattern, total):
        self.socket = socket.create_connection(address)
        self.socket.setblocking(False)
        self.pattern, self.total = pattern, total
        self.repeated = pattern * (PIECE // len(pattern) + 2)
        self.sent = self.received = 0
        self.typed = b""
        self.finishing = False  # half-close when all is sent
        self.ended = ""  # why it is closed

    def fileno(self):
        return self.socket.fileno()

    def expected(self, at, most):
        """The bytes that --send asks for, from number `at` on."""
        start = at % len(self.pattern)
        return self.repeated[start:start + max(0, min(most, self.total - at))]

    def wants_to_write(self):
        return self.sent < self.total or self.typed or self.finishing

    def write(self):
        if self.sent < self.total:
            self.sent += self.socket.send(self.expected(self.sent, PIECE))
        elif self.typed:
            self.typed = self.typed[self.socket.send(self.typed):]
        else:
            self.socket.shutdown(socket.SHUT_WR)
            self.finishing = False

    def read(self):
        data = self.socket.recv(PIECE)
        if not data:
            return self.close("closed by the server")
        expected = self.expected(self.received, len(data))
        self.received += len(expected)
        if not data.startswith(expected):
            return self.close("closed here, because other bytes came back")
        sys.stdout.buffer.write(data[len(expected):])
        sys.stdout.flush()

    def attempt(self, action):
        try:
            if not self.ended:
                action()
        except ConnectionError:
            self.close("reset by the server")

    def close(self, reason):
        self.ended = reason
        self.socket.close()


def state(clients, numbered):
    """What has happened so far, in a line."""
    if not numbered:
        one = clients[0]
        return f"sent {one.sent:,} of {one.total:,} bytes; {one.received:,} came back" if one.total else ""
    groups = {}
    for number, one in enumerate(clients, 1):
        groups.setdefault(one.ended or ("served" if one.received else "waiting"), []).append(str(number))
    return "\n".join(f"{len(numbers)} {what}: {' '.join(numbers)}" for what, numbers in groups.items())


def close_numbered(clients, words):
    for word in words:
        if word.isdigit() and 1 <= int(word) <= len(clients) and not clients[int(word) - 1].ended:
            clients[int(word) - 1].close("closed here")
        else:
            say(f"'{word}' is not the number of an open connection")


def converse(clients, options):
    start = moved = time.monotonic()
    reported = ""
    typing = sys.stdin is not None and not options.half_close
    while alive := [one for one in clients if not one.ended]:
        now = time.monotonic()
        if now - moved >= PAUSE and state(clients, options.clients) != reported:
            reported = state(clients, options.clients)
            say(reported)
        late = start + options.read_late - now
        readers = [sys.stdin] * typing + (alive if late <= 0 else [])
        writers = [one for one in alive if one.wants_to_write()]
        readable, writable, _ = select.select(readers, writers, [], min(late, PAUSE) if late > 0 else PAUSE)
        if readable or writable:
            moved = time.monotonic()
        for one in writable:
            one.attempt(one.write)
        for one in readable:
            if one is not sys.stdin:
                one.attempt(one.read)
        if sys.stdin in readable:
            line = os.read(sys.stdin.fileno(), PIECE)
            typing = bool(line)
            if options.clients:
                close_numbered(clients, line.decode(errors="replace").split())
            for one in alive:
                one.finishing = not line
                one.typed += b"" if options.clients else line
    if state(clients, options.clients) != reported:
        say(state(clients, options.clients))


def main():
    parser = Parser(usage=argparse.SUPPRESS, add_help=False, allow_abbrev=False)
    parser.add_argument("address", nargs="?", type=endpoint, default="8080", metavar="the address")
    parser.add_argument("--send", type=size, default="0")
    parser.add_argument("--read-late", type=duration, default="0s")
    parser.add_argument("--half-close", action="store_true")
    parser.add_argument("--clients", type=count, default=0)
    parser.add_argument("--help", action="store_true")
    options = parser.parse_args()
    if options.help:
        return print(__doc__, end="")
    pattern = bytes(range(251)) if options.send else b"hello\n"  # 251: no power of two, so a lost page shows
    total = options.send or (len(pattern) if options.clients else 0)
    try:
        clients = [Client(options.address, pattern, total) for _ in range(options.clients or 1)]
    except OSError as error:
        sys.exit(f"./tour talk: cannot connect to {options.address[0]} port {options.address[1]}: {error.strerror}")
    for one in clients:
        one.finishing = options.half_close
    if not options.clients:
        say(f"connected, from port {clients[0].socket.getsockname()[1]}")
    converse(clients, options)
    if not options.clients:
        say(clients[0].ended)
    lost = any(one.received < one.total and one.ended != "closed here" for one in clients)
    sys.exit(1 if lost or any("other bytes" in one.ended for one in clients) else 0)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)

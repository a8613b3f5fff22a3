"""gRPC's own xDS client in Python: calls a target again and again and counts what comes back.

usage: grpc_client.py TARGET (GRPC_XDS_BOOTSTRAP_CONFIG says where the control plane is)

Prints a line of JSON ten times a second, and a last one when stdin ends and no call is under way any more:

    {"answers": {NAME: CALLS}, "failed": CALLS, "failures": [the first few, in words]}
"""

import collections
import json
import sys
import threading
import time

import grpc

CALLERS = 4
PAUSE = 0.002
DEADLINE = 20
# Every so many calls one is a stream of so many messages.
STREAM_EACH, MESSAGES = 5, 3


class Counts:
    def __init__(self):
        self.lock = threading.Lock()
        self.answers = collections.Counter()
        self.failed = 0
        self.failures = []

    def say(self):
        with self.lock:
            line = {"answers": self.answers, "failed": self.failed, "failures": self.failures}
            print(json.dumps(line), flush=True)

    def take(self, call):
        """Makes a call, which gives the names of who answered."""
        try:
            names = call()
        except grpc.RpcError as error:
            with self.lock:
                self.failed += 1
                self.failures = (self.failures + [f"{error.code()}: {error.details()}"])[:8]
            return
        with self.lock:
            self.answers.update([names[-1]])


def paced(messages):
    for _ in range(messages):
        time.sleep(PAUSE)
        yield b"hello"


def call_until(stopped, channel, counts):
    # Without functions for it, messages are bytes.
    unary = channel.unary_unary("/culvert.test.Names/Get")
    stream = channel.stream_stream("/culvert.test.Names/Follow")

    def followed():
        names = [name.decode() for name in stream(paced(MESSAGES), timeout=DEADLINE)]
        if len(names) != MESSAGES:
            raise SystemExit(f"{len(names)} answers to {MESSAGES} messages")
        return names

    turn = 0
    while not stopped.is_set():
        turn += 1
        counts.take(followed if turn % STREAM_EACH == 0 else lambda: [unary(b"hello", timeout=DEADLINE).decode()])
        time.sleep(PAUSE)


def main():
    stopped, counts = threading.Event(), Counts()
    with grpc.insecure_channel(sys.argv[1]) as channel:
        arguments = (stopped, channel, counts)
        callers = [threading.Thread(target=call_until, args=arguments) for _ in range(CALLERS)]
        for caller in callers:
            caller.start()
        threading.Thread(target=lambda: (sys.stdin.read(), stopped.set()), daemon=True).start()
        while not stopped.wait(0.1):
            counts.say()
        for caller in callers:
            caller.join()
        counts.say()
        print("ended", flush=True)


main()

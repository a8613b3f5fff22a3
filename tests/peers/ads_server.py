"""A plain ADS server on grpcio, without any xDS library: it sends the bytes that it is told to send.

Reads commands from stdin, a line each, and prints what the client says:

    TYPE_URL BASE64   sends a response (a whole DiscoveryResponse or DeltaDiscoveryResponse) on the newest stream
    HANGUP            ends the newest stream

    OPEN              a stream was opened
    REQUEST TYPE_URL NONCE ERROR   a request came; NONCE and ERROR (JSON) may be empty
    ASKS TYPE_URL NAME             it names what it wants
"""

import base64
import json
import queue
import sys
import threading
from concurrent import futures

import grpc

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
# Field numbers of type_url, response_nonce and error_detail.
FIELDS = {"StreamAggregatedResources": (4, 5, 6), "DeltaAggregatedResources": (2, 6, 7)}


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def fields(data):
    """The length-delimited fields of a message: the last value of each counts."""
    found, at = {}, 0
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 2:
            length, at = varint(data, at)
            found[key >> 3] = data[at : at + length]
            at += length
        elif key & 7 == 0:
            _, at = varint(data, at)
        else:
            at += 8 if key & 7 == 1 else 4
    return found


def asked(data):
    """The names that a request asks for: field 3 of both variants."""
    names, at = [], 0
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 2:
            length, at = varint(data, at)
            names += [data[at : at + length].decode()] if key >> 3 == 3 else []
            at += length
        elif key & 7 == 0:
            _, at = varint(data, at)
        else:
            at += 8 if key & 7 == 1 else 4
    return names


def say(*words):
    print(*words, flush=True)


class Streams:
    def __init__(self):
        self.newest = None
        self.lock = threading.Lock()

    def serve(self, method):
        type_url, nonce, error = FIELDS[method]

        def stream(requests, _context):
            outgoing = queue.Queue()
            with self.lock:
                self.newest = outgoing
            say("OPEN")

            def listen():
                try:
                    for request in requests:
                        seen = fields(request)
                        status = fields(seen[error]) if error in seen else {}
                        message = json.dumps(status[2].decode()) if 2 in status else ""
                        for name in asked(request):
                            say("ASKS", seen.get(type_url, b"").decode(), name)
                        say("REQUEST", seen.get(type_url, b"").decode(), seen.get(nonce, b"").decode(), message)
                except grpc.RpcError:
                    pass
                outgoing.put(None)

            threading.Thread(target=listen, daemon=True).start()
            while (response := outgoing.get()) is not None:
                yield response

        return grpc.stream_stream_rpc_method_handler(stream)


def main():
    streams = Streams()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    methods = {method: streams.serve(method) for method in FIELDS}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.write(f"127.0.0.1:{port}")
    for line in sys.stdin:
        words = line.split()
        with streams.lock:
            newest = streams.newest
        if newest is None:
            say("NOBODY")
        elif words[0] == "HANGUP":
            newest.put(None)
        else:
            newest.put(base64.b64decode(words[1]))


main()

"""A gRPC server that asks a control plane for its listener (gRFC A36).

usage: grpc_server.py ADDRESS NAME (GRPC_XDS_BOOTSTRAP_CONFIG says where the control plane is)

Answers every message of the calls of grpc_client.py with its name, once its listener has come; ends when stdin ends.
"""

import sys
from concurrent import futures

import grpc

address, name = sys.argv[1], sys.argv[2].encode()


class Names(grpc.GenericRpcHandler):
    def service(self, call):
        if call.method == "/culvert.test.Names/Get":
            return grpc.unary_unary_rpc_method_handler(lambda request, context: name)
        if call.method == "/culvert.test.Names/Follow":
            return grpc.stream_stream_rpc_method_handler(lambda requests, context: (name for _ in requests))
        return None


server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[Names()], xds=True)
server.add_insecure_port(address)
server.start()
print("started", flush=True)
sys.stdin.read()
server.stop(None)

// A control plane built on go-control-plane, the library that most control planes are built on. Reads a snapshot from
// stdin, a JSON object on each line: {"version": "1", "resources": {"cluster": [Any, ...], ...}}, or {"version": "3", "again":
// "1"}: what was version 1, without reading it anew; serves it over ADS (state of the world and delta) to every node, and
// prints what nodes refuse.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/on_demand/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	runtimev3 "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// kinds names the fields of a line, and what stands in them.
var kinds = map[string]struct {
	url string
	new func() proto.Message
}{
	"runtimes":   {resource.RuntimeType, func() proto.Message { return &runtimev3.Runtime{} }},
	"clusters":   {resource.ClusterType, func() proto.Message { return &clusterv3.Cluster{} }},
	"extensions": {resource.ExtensionConfigType, func() proto.Message { return &corev3.TypedExtensionConfig{} }},
	"scopes":     {resource.ScopedRouteType, func() proto.Message { return &routev3.ScopedRouteConfiguration{} }},
	"hosts":      {resource.VirtualHostType, func() proto.Message { return &routev3.VirtualHost{} }},
	"endpoints":  {resource.EndpointType, func() proto.Message { return &endpointv3.ClusterLoadAssignment{} }},
	"listeners":  {resource.ListenerType, func() proto.Message { return &listenerv3.Listener{} }},
	"routes":     {resource.RouteType, func() proto.Message { return &routev3.RouteConfiguration{} }},
}

// everyone puts all nodes into one group.
type everyone struct{}

func (everyone) ID(*corev3.Node) string { return "all" }

func main() {
	addressFile := flag.String("address-file", "", "where to write the address that was bound")
	flag.Parse()
	snapshots := cache.NewSnapshotCache(true, everyone{}, nil)
	refused := func(typeURL string, detail interface{ GetMessage() string }) {
		if message := detail.GetMessage(); message != "" {
			fmt.Printf("NACK %s %s\n", typeURL, message)
		}
	}
	callbacks := server.CallbackFuncs{
		StreamRequestFunc: func(_ int64, request *discovery.DiscoveryRequest) error {
			refused(request.GetTypeUrl(), request.GetErrorDetail())
			return nil
		},
		StreamDeltaRequestFunc: func(_ int64, request *discovery.DeltaDiscoveryRequest) error {
			refused(request.GetTypeUrl(), request.GetErrorDetail())
			return nil
		},
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	grpcServer := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(grpcServer, server.NewServer(context.Background(), snapshots, callbacks))
	go func() { check(grpcServer.Serve(listener)) }()
	check(os.WriteFile(*addressFile, []byte(listener.Addr().String()), 0o600))
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		snapshot, err := parse(lines.Bytes())
		check(err)
		check(snapshots.SetSnapshot(context.Background(), "all", snapshot))
		fmt.Println("SET", snapshot.GetVersion(resource.ClusterType))
	}
}

// known holds what was read, by version.
var known = map[string]map[resource.Type][]types.Resource{}

func parse(line []byte) (*cache.Snapshot, error) {
	var content struct {
		Version   string                       `json:"version"`
		Again     string                       `json:"again"`
		Resources map[string][]json.RawMessage `json:"resources"`
	}
	if err := json.Unmarshal(line, &content); err != nil {
		return nil, err
	}
	if content.Again != "" {
		return cache.NewSnapshot(content.Version, known[content.Again])
	}
	resources := map[resource.Type][]types.Resource{}
	for name, list := range content.Resources {
		kind := kinds[name]
		for _, raw := range list {
			message := kind.new()
			if err := protojson.Unmarshal(raw, message); err != nil {
				return nil, err
			}
			resources[kind.url] = append(resources[kind.url], message.(types.Resource))
		}
	}
	known[content.Version] = resources
	snapshot, err := cache.NewSnapshot(content.Version, resources)
	if err != nil {
		return nil, err
	}
	return snapshot, snapshot.Consistent()
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

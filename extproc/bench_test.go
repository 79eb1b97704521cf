package extproc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/mrgc/mrgc/extproc"
	"github.com/mrgc/mrgc/internal/fleet"
)

// benchPicker sees 40 instances of three regions.
func benchPicker(b *testing.B) *extproc.Picker {
	var instances []*fleet.Instance
	for i := range 40 {
		region := []fleet.Region{"use1", "use2", "usw2"}[i%3]
		instances = append(instances, instance(fmt.Sprintf("%s-%d", region, i), region, benchKey(i)))
	}
	snapshot := fleet.NewSnapshot(epoch(), instances)
	cfg := config(func() *fleet.Snapshot { return snapshot })
	cfg.Now = time.Now
	picker, err := extproc.New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	return picker
}

func benchKey(i int) string { return fmt.Sprintf("%016x", i) }

// benchRequest has four recipients and as many headers as a browser sends.
func benchRequest() headers {
	h := sealed("1").with("mrgc-recipients", strings.Join([]string{benchKey(0), benchKey(9), benchKey(13), benchKey(23)}, ","))
	for i := range 12 {
		h = h.and(fmt.Sprintf("x-other-%d", i), "value")
	}
	return h
}

// restore puts the token back that the picker has wiped.
func restore(h *corev3.HeaderValue) { copy(h.GetRawValue(), "Bearer "+token) }

// BenchmarkProcess is one request without gRPC: headers to answer.
func BenchmarkProcess(b *testing.B) {
	picker, request := benchPicker(b), benchRequest()
	message := request.message()
	var authorization *corev3.HeaderValue
	for _, h := range request {
		if h.GetKey() == "authorization" {
			authorization = h
		}
	}
	messages := []*extprocv3.ProcessingRequest{message}
	var stream memoryStream
	b.ReportAllocs()
	for b.Loop() {
		restore(authorization)
		stream.messages = messages
		if err := picker.Process(&stream); err != nil {
			b.Fatal(err)
		}
	}
	if stream.last.GetDynamicMetadata() == nil {
		b.Fatal(stream.last)
	}
}

// BenchmarkProcessGRPC is one request with all of gRPC, client included, but
// no network.
func BenchmarkProcessGRPC(b *testing.B) {
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	extprocv3.RegisterExternalProcessorServer(server, benchPicker(b))
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()
	conn, err := grpc.NewClient("passthrough:picker",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	client, message := extprocv3.NewExternalProcessorClient(conn), benchRequest().message()
	b.ReportAllocs()
	for b.Loop() {
		stream, err := client.Process(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		if err := stream.Send(message); err != nil {
			b.Fatal(err)
		}
		answer, err := stream.Recv()
		if err != nil || answer.GetDynamicMetadata() == nil {
			b.Fatal(answer, err)
		}
		if err := stream.CloseSend(); err != nil {
			b.Fatal(err)
		}
		if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
			b.Fatal(err)
		}
	}
}

func BenchmarkInFlight(b *testing.B) {
	f := extproc.NewInFlight(time.Minute)
	b.ReportAllocs()
	for b.Loop() {
		f.Add("request", "instance", extproc.Flight{Tokens: 1000, Claim: extproc.Claim{Model: model, Tenant: tenant, Tokens: 2000}}, epoch())
		f.On("instance")
		f.Done("request")
	}
}

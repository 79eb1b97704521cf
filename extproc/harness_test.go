package extproc_test

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gleak"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/mrgc/mrgc/extproc"
	"github.com/mrgc/mrgc/internal/fleet"
	rules "github.com/mrgc/mrgc/internal/tenant"
)

const (
	model  = "smol"
	tenant = "acme"
	token  = "edge-token-that-nobody-may-see"

	kidA = "aaaaaaaaaaaaaaaa"
	kidB = "bbbbbbbbbbbbbbbb"
	kidC = "cccccccccccccccc"
)

// epoch is where the harness's clock starts.
func epoch() time.Time { return time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC) }

// instance serves the model and has just been heard of; change makes it otherwise.
func instance(id string, region fleet.Region, kid string, change ...func(*fleet.Instance)) *fleet.Instance {
	in := &fleet.Instance{
		ID: id, Region: region, Address: "addr-" + id,
		Models: []string{model}, KeyIDs: []string{kid},
		Health: fleet.Health{Enclave: true, Engine: true}, Load: fleet.Load{Slots: 4},
		HeartbeatAt: epoch(),
	}
	for _, f := range change {
		f(in)
	}
	return in
}

func draining(in *fleet.Instance)   { in.Draining = true }
func sick(in *fleet.Instance)       { in.Health.Engine = false }
func stale(in *fleet.Instance)      { in.HeartbeatAt = epoch().Add(-time.Hour) }
func otherModel(in *fleet.Instance) { in.Models = []string{"large"} }

// usual is a fleet of two local instances and one elsewhere.
func usual() *fleet.Snapshot {
	return fleet.NewSnapshot(epoch(), []*fleet.Instance{
		instance("use1-0", "use1", kidA), instance("use1-1", "use1", kidB), instance("usw2-0", "usw2", kidC),
	})
}

// config is a picker's in use1 that lets one tenant in; view may be changed.
func config(view func() *fleet.Snapshot) extproc.Config {
	return extproc.Config{
		Region: "use1", View: view,
		Settings: extproc.Settings{SpillTo: []fleet.Region{"use2", "usw2"}, StaleAfter: 15 * time.Second},
		Admit: func(name string, bearer []byte, _ time.Time) (*rules.Tenant, error) {
			if name == tenant && string(bearer) == token {
				return &rules.Tenant{Name: tenant}, nil
			}
			return nil, rules.ErrUnknown
		},
		Now: epoch,
	}
}

// harness is a picker behind a real gRPC server, with what a test may change.
type harness struct {
	picker   *extproc.Picker
	conn     *grpc.ClientConn
	registry *prometheus.Registry
	logs     *bytes.Buffer // read it when no stream is open

	mu       sync.Mutex // guards what the picker reads
	snapshot *fleet.Snapshot
	now      time.Time
}

// start runs a picker for one test, and checks afterwards that it left nothing.
func start(change ...func(*extproc.Config)) *harness {
	before := gleak.Goroutines()
	DeferCleanup(func() { Eventually(gleak.Goroutines).ShouldNot(gleak.HaveLeaked(before)) })

	h := &harness{registry: prometheus.NewRegistry(), logs: &bytes.Buffer{}, snapshot: usual(), now: epoch()}
	cfg := config(func() *fleet.Snapshot { h.mu.Lock(); defer h.mu.Unlock(); return h.snapshot })
	cfg.Now = func() time.Time { h.mu.Lock(); defer h.mu.Unlock(); return h.now }
	cfg.Metrics = h.registry
	cfg.Logger = slog.New(slog.NewTextHandler(h.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	for _, f := range change {
		f(&cfg)
	}
	var err error
	h.picker, err = extproc.New(cfg)
	Expect(err).NotTo(HaveOccurred())

	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	extprocv3.RegisterExternalProcessorServer(server, h.picker)
	accesslogv3.RegisterAccessLogServiceServer(server, h.picker)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	DeferCleanup(func() {
		server.Stop()
		Eventually(served).Should(Receive(BeNil()))
	})
	h.conn, err = grpc.NewClient("passthrough:picker",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(h.conn.Close)
	return h
}

// see shows the picker a fleet, read from the store at its first moment.
func (h *harness) see(instances ...*fleet.Instance) {
	h.seeSnapshot(fleet.NewSnapshot(epoch(), instances))
}

func (h *harness) seeSnapshot(s *fleet.Snapshot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.snapshot = s
}

func (h *harness) time() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now
}

func (h *harness) advance(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = h.now.Add(d)
}

// open starts the stream of one HTTP request.
func (h *harness) open(ctx context.Context) extprocv3.ExternalProcessor_ProcessClient {
	GinkgoHelper()
	stream, err := extprocv3.NewExternalProcessorClient(h.conn).Process(ctx)
	Expect(err).NotTo(HaveOccurred())
	return stream
}

// ask sends one request's headers as Envoy does, and sees the stream end cleanly.
func (h *harness) ask(ctx context.Context, headers headers) *extprocv3.ProcessingResponse {
	GinkgoHelper()
	stream := h.open(ctx)
	Expect(stream.Send(headers.message())).To(Succeed())
	answer, err := stream.Recv()
	Expect(err).NotTo(HaveOccurred())
	Expect(stream.CloseSend()).To(Succeed())
	_, err = stream.Recv()
	Expect(err).To(MatchError("EOF"))
	return answer
}

// picked is where an answer sends the request; the test fails on a refusal.
func picked(answer *extprocv3.ProcessingResponse) string {
	GinkgoHelper()
	Expect(answer.GetImmediateResponse()).To(BeNil(), "%s", answer.GetImmediateResponse().GetBody())
	return answer.GetDynamicMetadata().GetFields()["envoy.lb"].GetStructValue().
		GetFields()["x-gateway-destination-endpoint"].GetStringValue()
}

// log sends access log entries and waits until the picker has read them.
func (h *harness) log(ctx context.Context, entries ...*accesslogdatav3.HTTPAccessLogEntry) {
	GinkgoHelper()
	stream, err := accesslogv3.NewAccessLogServiceClient(h.conn).StreamAccessLogs(ctx)
	Expect(err).NotTo(HaveOccurred())
	for _, entry := range entries {
		Expect(stream.Send(&accesslogv3.StreamAccessLogsMessage{
			LogEntries: &accesslogv3.StreamAccessLogsMessage_HttpLogs{
				HttpLogs: &accesslogv3.StreamAccessLogsMessage_HTTPAccessLogEntries{
					LogEntry: []*accesslogdatav3.HTTPAccessLogEntry{entry},
				},
			},
		})).To(Succeed())
	}
	_, err = stream.CloseAndRecv()
	Expect(err).NotTo(HaveOccurred())
}

// ended is the log entry that Envoy writes at the end of a request.
func ended(envoyID string, change ...func(*accesslogdatav3.AccessLogCommon)) *accesslogdatav3.HTTPAccessLogEntry {
	common := &accesslogdatav3.AccessLogCommon{AccessLogType: accesslogdatav3.AccessLogType_DownstreamEnd}
	for _, f := range change {
		f(common)
	}
	return &accesslogdatav3.HTTPAccessLogEntry{
		CommonProperties: common,
		Request:          &accesslogdatav3.HTTPRequestProperties{RequestId: envoyID},
	}
}

// headers are a request's, in order.
type headers []*corev3.HeaderValue

// sealed is a good request that Envoy calls id, to both local instances.
func sealed(id string) headers {
	values := map[string]string{
		":method": "POST", ":path": "/v1/sealed", "x-request-id": id,
		"content-type":    "application/mrgc-chunked-req",
		"authorization":   "Bearer " + token,
		"mrgc-model":      model,
		"mrgc-tenant":     tenant,
		"mrgc-recipients": kidA + "," + kidB,
		"mrgc-request-id": "0123456789abcdef0123456789abcdef",
	}
	var h headers
	for _, name := range slices.Sorted(maps.Keys(values)) {
		h = h.and(name, values[name])
	}
	return h
}

// and adds a header, also when there is one of this name already.
func (h headers) and(name, value string) headers {
	return append(slices.Clip(h), &corev3.HeaderValue{Key: name, RawValue: []byte(value)})
}

// without leaves a header out.
func (h headers) without(name string) headers {
	return slices.DeleteFunc(slices.Clone(h), func(v *corev3.HeaderValue) bool { return v.GetKey() == name })
}

// with replaces a header, or adds it.
func (h headers) with(name, value string) headers { return h.without(name).and(name, value) }

func (h headers) message() *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestHeaders{
		RequestHeaders: &extprocv3.HttpHeaders{Headers: &corev3.HeaderMap{Headers: h}},
	}}
}

package xds_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/mrgc/mrgc/envoy/envoytest"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/xds"
)

// routerDouble is a router around the server under test: its ports, a picker
// that does as it is told, and the end of the access log.
type routerDouble struct {
	source   *identity.Source
	server   *xds.Server
	grpc     netip.AddrPort
	http     netip.AddrPort
	stop     func() // ends the gRPC port alone
	stopHTTP func() // and the HTTPS port

	picker *pickerDouble
	log    *logDouble
}

func startRouter(ca *envoytest.CA, server *xds.Server) *routerDouble {
	GinkgoHelper()
	r := &routerDouble{
		source: ca.Source(GinkgoTB(), identity.ID{Region: "use1", Role: identity.RoleRouter}),
		server: server, picker: &pickerDouble{}, log: &logDouble{},
	}
	l := listen("127.0.0.1:0")
	r.grpc = netip.MustParseAddrPort(l.Addr().String())
	r.serveGRPC(l)

	l = listen("127.0.0.1:0")
	r.http = netip.MustParseAddrPort(l.Addr().String())
	r.serveHTTP(l)
	return r
}

func (r *routerDouble) serveHTTP(l net.Listener) {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	web := &http.Server{Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, _ = w.Write([]byte("router says " + req.URL.String()))
		if san := req.Header.Values(api.HeaderTenantSAN); len(san) > 0 {
			_, _ = fmt.Fprintf(w, " to %v", san)
		}
	})}
	var ended sync.WaitGroup
	ended.Go(func() { _ = web.Serve(tls.NewListener(l, r.source.ServerTLS(isEnvoy))) })
	r.stopHTTP = func() { _ = web.Close(); ended.Wait() }
	DeferCleanup(r.stopHTTP)
}

func isEnvoy(id identity.ID) bool { return id.Role == identity.RoleEnvoy }

// restart opens the gRPC port again where it was.
func (r *routerDouble) restart() {
	GinkgoHelper()
	r.serveGRPC(listen(r.grpc.String()))
}

func (r *routerDouble) serveGRPC(l net.Listener) {
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(r.source.ServerTLS(isEnvoy))))
	r.server.Register(g)
	extprocv3.RegisterExternalProcessorServer(g, r.picker)
	accesslogv3.RegisterAccessLogServiceServer(g, r.log)
	var ended sync.WaitGroup
	ended.Go(func() { _ = g.Serve(l) })
	r.stop = func() { g.Stop(); ended.Wait() }
	DeferCleanup(r.stop)
}

func listen(address string) net.Listener {
	GinkgoHelper()
	l, err := net.Listen("tcp", address)
	Expect(err).NotTo(HaveOccurred())
	return l
}

// pickerDouble answers every request in the same way until told otherwise.
type pickerDouble struct {
	extprocv3.UnimplementedExternalProcessorServer

	mu     sync.Mutex
	pick   string                       // guarded by mu: "ip:port,…"; empty picks nothing
	hang   bool                         // guarded by mu: does not answer
	refuse *api.Error                   // guarded by mu: answers at once
	seen   *extprocv3.ProcessingRequest // guarded by mu: the last request
	asked  int                          // guarded by mu: requests so far
}

func (p *pickerDouble) picks(endpoints string) { p.set(func() { p.pick = endpoints }) }
func (p *pickerDouble) hangs(yes bool)         { p.set(func() { p.hang = yes }) }
func (p *pickerDouble) refuses(e *api.Error)   { p.set(func() { p.refuse = e }) }

func (p *pickerDouble) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

func (p *pickerDouble) last() *extprocv3.ProcessingRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen
}

func (p *pickerDouble) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

func (p *pickerDouble) Process(stream extprocv3.ExternalProcessor_ProcessServer) error {
	for {
		req, err := stream.Recv()
		if err != nil {
			return nil
		}
		resp := p.answer(req)
		if resp == nil {
			<-stream.Context().Done()
			return nil
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

func (p *pickerDouble) answer(req *extprocv3.ProcessingRequest) *extprocv3.ProcessingResponse {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = req
	p.asked++
	switch {
	case p.hang:
		return nil
	case p.refuse != nil:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{
			ImmediateResponse: &extprocv3.ImmediateResponse{
				Status:  &typev3.HttpStatus{Code: typev3.StatusCode(p.refuse.Status)},
				Body:    p.refuse.Body(),
				Headers: &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "retry-after", RawValue: []byte("7")}}}},
			},
		}}
	}
	headers := &extprocv3.HeadersResponse{}
	resp := &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: headers}}
	if p.pick != "" {
		metadata, err := structpb.NewStruct(map[string]any{"envoy.lb": map[string]any{"x-gateway-destination-endpoint": p.pick}})
		if err != nil {
			panic(err)
		}
		resp.DynamicMetadata = metadata
		headers.Response = &extprocv3.CommonResponse{HeaderMutation: &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{
			{Header: &corev3.HeaderValue{Key: "x-gateway-destination-endpoint", RawValue: []byte(p.pick)}},
		}}}
	}
	return resp
}

// logDouble keeps what Envoy reports of its requests.
type logDouble struct {
	accesslogv3.UnimplementedAccessLogServiceServer

	mu      sync.Mutex
	entries []*accesslogdatav3.HTTPAccessLogEntry // guarded by mu
}

func (l *logDouble) StreamAccessLogs(stream accesslogv3.AccessLogService_StreamAccessLogsServer) error {
	for {
		message, err := stream.Recv()
		if err != nil {
			return nil
		}
		l.mu.Lock()
		l.entries = append(l.entries, message.GetHttpLogs().GetLogEntry()...)
		l.mu.Unlock()
	}
}

func (l *logDouble) list() []*accesslogdatav3.HTTPAccessLogEntry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.entries[:len(l.entries):len(l.entries)]
}

package envoytest

import (
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
)

// Parent stands in for an instance's parent: HTTP/2 over mutual TLS, /healthz,
// and any other request answered with the instance's id.
type Parent struct {
	ID      string
	Region  fleet.Region
	Address netip.AddrPort

	served  atomic.Int64
	sick    atomic.Bool
	handler atomic.Pointer[http.HandlerFunc]
	server  *http.Server
	ended   sync.WaitGroup
}

// StartParent runs a parent with the identity of an instance.
func StartParent(t testing.TB, ca *CA, region fleet.Region, id string) *Parent {
	t.Helper()
	source := ca.Source(t, identity.ID{Region: string(region), Instance: id, Role: identity.RoleParent})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	p := &Parent{ID: id, Region: region, Address: netip.MustParseAddrPort(l.Addr().String())}
	p.server = &http.Server{ //nolint:gosec // a test's server
		Handler:   http.HandlerFunc(p.serve),
		ErrorLog:  slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // whom it does not admit
		TLSConfig: source.ServerTLS(func(peer identity.ID) bool { return peer.Role == identity.RoleEnvoy }),
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	p.server.Protocols = protocols
	p.ended.Go(func() { _ = p.server.Serve(tls.NewListener(l, p.server.TLSConfig)) })
	t.Cleanup(p.Stop)
	return p
}

func (p *Parent) serve(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/healthz" {
		if p.sick.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		return
	}
	p.served.Add(1)
	if h := p.handler.Load(); h != nil {
		(*h)(w, r)
		return
	}
	_, _ = w.Write([]byte(p.ID))
}

// Served is how many requests, health checks apart, have come.
func (p *Parent) Served() int { return int(p.served.Load()) }

// SetHealthy says what /healthz answers.
func (p *Parent) SetHealthy(healthy bool) { p.sick.Store(!healthy) }

// Handle replaces the answer to requests other than health checks.
func (p *Parent) Handle(h http.HandlerFunc) { p.handler.Store(&h) }

// Stop closes the parent's port and its connections, as its death would.
func (p *Parent) Stop() {
	_ = p.server.Close()
	p.ended.Wait()
}

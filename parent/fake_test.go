package parent_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/vsock"
)

// serve runs handler until the returned function is called, or the test ends.
func serve(listener net.Listener, server *http.Server) (stop func()) {
	server.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(listener)
	}()
	stop = sync.OnceFunc(func() {
		_ = server.Close()
		<-served
	})
	DeferCleanup(stop)
	return stop
}

// fakeEnclave answers on a Unix socket with the vsock handshake.
type fakeEnclave struct {
	address string
	stop    func()
	open    atomic.Int64

	mu     sync.Mutex
	claims []string         // guarded by mu
	answer http.HandlerFunc // guarded by mu: to sealed requests

	hosts []api.Host // guarded by mu: what the parent said since its start

	tenants []string // guarded by mu: lists that it has been handed since its start

	credentials []api.AWSCredentials // guarded by mu: handed to it since its start

	released api.KeyReleases // guarded by mu

	refusesTenants atomic.Bool
	signsNone      atomic.Bool  // receipts: it takes no host's statement
	refused        atomic.Int64 // of those
}

// handedCredentials are the ids of the credentials that the enclave has been handed.
func (e *fakeEnclave) handedCredentials() (ids []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.credentials {
		ids = append(ids, c.AccessKeyID+" "+c.SecretAccessKey+" "+c.SessionToken)
	}
	return ids
}

// told is what the parent said last; nothing: the zero value.
func (e *fakeEnclave) told() api.Host {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.hosts) == 0 {
		return api.Host{}
	}
	return e.hosts[len(e.hosts)-1]
}

// handed are the lists of tenants that the enclave has been handed.
func (e *fakeEnclave) handed() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.tenants)
}

func newFakeEnclave(address string) *fakeEnclave {
	GinkgoHelper()
	e := &fakeEnclave{address: address, claims: []string{"first claims"}, answer: func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "sealed answer")
	}}
	e.start()
	return e
}

func (e *fakeEnclave) start() {
	GinkgoHelper()
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+api.PathSealed, func(w http.ResponseWriter, r *http.Request) {
		e.mu.Lock()
		answer := e.answer
		e.mu.Unlock()
		answer(w, r)
	})
	mux.HandleFunc("GET /recipients", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(e.recipients())
	})
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	e.tenants = nil // a new enclave holds none
	mux.HandleFunc("GET "+api.PathTenants, func(w http.ResponseWriter, _ *http.Request) {
		held := api.Tenants{}
		if n := len(e.handed()); n > 0 {
			held.Version = uint64(n) // of the tests' signer, the n-th list
		}
		_ = json.NewEncoder(w).Encode(held)
	})
	mux.HandleFunc("PUT "+api.PathTenants, func(w http.ResponseWriter, r *http.Request) {
		file, _ := io.ReadAll(r.Body)
		if e.refusesTenants.Load() {
			api.Errorf(http.StatusConflict, "tenants_refused", "not these").Write(w)
			return
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		e.tenants = append(e.tenants, string(file))
		w.WriteHeader(http.StatusNoContent)
	})
	e.hosts = nil
	mux.HandleFunc("PUT "+api.PathHost, func(w http.ResponseWriter, r *http.Request) {
		if e.signsNone.Load() {
			e.refused.Add(1)
			http.NotFound(w, r)
			return
		}
		var said api.Host
		_ = json.NewDecoder(r.Body).Decode(&said)
		e.mu.Lock()
		defer e.mu.Unlock()
		e.hosts = append(e.hosts, said)
		w.WriteHeader(http.StatusNoContent)
	})
	e.credentials = nil
	mux.HandleFunc("GET "+api.PathAWSCredentials, func(w http.ResponseWriter, _ *http.Request) {
		e.mu.Lock()
		defer e.mu.Unlock()
		var held api.AWSCredentialsHeld
		if n := len(e.credentials); n > 0 {
			held.AccessKeyID = e.credentials[n-1].AccessKeyID
		}
		_ = json.NewEncoder(w).Encode(held)
	})
	mux.HandleFunc("PUT "+api.PathAWSCredentials, func(w http.ResponseWriter, r *http.Request) {
		var c api.AWSCredentials
		_ = json.NewDecoder(r.Body).Decode(&c)
		e.mu.Lock()
		defer e.mu.Unlock()
		e.credentials = append(e.credentials, c)
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET "+api.PathKeyReleases, func(w http.ResponseWriter, r *http.Request) {
		e.mu.Lock()
		defer e.mu.Unlock()
		said := e.released
		after, _ := strconv.ParseUint(r.URL.Query().Get("after"), 10, 64)
		said.Releases = slices.DeleteFunc(slices.Clone(said.Releases), func(k api.KeyRelease) bool {
			return r.URL.Query().Get("enclave") == said.Enclave && k.Sequence <= after
		})
		_ = json.NewEncoder(w).Encode(said)
	})
	listener, err := vsock.Listen(e.address)
	Expect(err).NotTo(HaveOccurred())
	e.stop = serve(listener, &http.Server{Handler: mux})
}

func (e *fakeEnclave) answers(answer http.HandlerFunc) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.answer = answer
}

// dial is the parent's way to the enclave; connections that are open are counted.
func (e *fakeEnclave) dial(ctx context.Context) (net.Conn, error) {
	conn, err := vsock.Dial(ctx, e.address)
	return counted(conn, err, &e.open)
}

// holds replaces the enclave's keys, as a restart does.
func (e *fakeEnclave) holds(claims ...string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.claims = claims
}

func (e *fakeEnclave) recipients() api.Recipients {
	e.mu.Lock()
	defer e.mu.Unlock()
	var recipients api.Recipients
	for _, claims := range e.claims {
		recipients.Recipients = append(recipients.Recipients, api.Recipient{Claims: []byte(claims), Attestation: []byte("document")})
	}
	return recipients
}

// keyID is what claims are called.
func keyID(claims string) string {
	hash := sha256.Sum256([]byte(claims))
	return hex.EncodeToString(hash[:8])
}

const (
	metrics     = "llamacpp:requests_processing 2\nllamacpp:requests_deferred 3\n"
	idleMetrics = "llamacpp:requests_processing 0\nllamacpp:requests_deferred 0\n"
)

// fakeGuard is an engine behind mutual TLS, as enclave and parent reach it.
type fakeGuard struct {
	address string
	stop    func()
	sick    atomic.Bool
	away    atomic.Bool            // cannot be dialled
	says    atomic.Pointer[string] // its metrics
	asked   atomic.Int64           // for them
	fails   atomic.Value           // path of the wash's step that fails; empty: none

	mu       sync.Mutex
	washed   []string              // guarded by mu: the steps that it was asked for
	restarts func(context.Context) // guarded by mu: is called while the engine is restarted
	open     atomic.Int64
}

func newFakeGuard(source *identity.Source) *fakeGuard {
	GinkgoHelper()
	g := &fakeGuard{restarts: func(context.Context) {}}
	g.measures(metrics)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, r *http.Request) {
		if g.sick.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		g.asked.Add(1)
		_, _ = io.WriteString(w, *g.says.Load())
	})
	g.fails.Store("")
	for _, path := range []string{api.PathWashPlant, api.PathWashClear, api.PathWashRestart, api.PathWashCheck} {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			g.mu.Lock()
			g.washed = append(g.washed, path)
			restarts := g.restarts
			g.mu.Unlock()
			if path == api.PathWashRestart {
				restarts(r.Context())
			}
			if g.fails.Load() == path {
				api.Errorf(http.StatusBadGateway, "wash_failed", "no such luck").Write(w)
				return
			}
			_ = json.NewEncoder(w).Encode(api.WashDone{Detail: "done"})
		})
	}
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	Expect(err).NotTo(HaveOccurred())
	g.address = listener.Addr().String()
	self := source.ID()
	config := source.ServerTLS(func(id identity.ID) bool {
		return id.Instance == self.Instance && (id.Role == identity.RoleParent || id.Role == identity.RoleEnclave)
	})
	server := &http.Server{Handler: mux, TLSConfig: config, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.ServeTLS(listener, "", "")
	}()
	g.stop = sync.OnceFunc(func() {
		_ = server.Close()
		<-served
	})
	DeferCleanup(g.stop)
	return g
}

// washes are the steps of washes that it was asked for.
func (g *fakeGuard) washes() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.washed)
}

// onRestart has something be called while the engine is restarted.
func (g *fakeGuard) onRestart(do func(context.Context)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.restarts = do
}

// measures replaces the engine's metrics.
func (g *fakeGuard) measures(text string) { g.says.Store(&text) }

// dial is the parent's way to the guard; connections that are open are counted.
func (g *fakeGuard) dial(ctx context.Context) (net.Conn, error) {
	if g.away.Load() {
		return nil, net.ErrClosed
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", g.address)
	return counted(conn, err, &g.open)
}

// counted counts a connection in open until it is closed.
func counted(conn net.Conn, err error, open *atomic.Int64) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	open.Add(1)
	return &countedConn{Conn: conn, closed: sync.OnceFunc(func() { open.Add(-1) })}, nil
}

type countedConn struct {
	net.Conn
	closed func()
}

func (c *countedConn) Close() error {
	defer c.closed()
	return c.Conn.Close()
}

// flakyStore is a fleet store that can be away.
type flakyStore struct {
	fleet.Store
	away          atomic.Bool
	deaf          atomic.Bool // takes no registration, and can be read
	refused       atomic.Int64
	registrations atomic.Int64
}

func (s *flakyStore) try() error {
	if s.away.Load() {
		s.refused.Add(1)
		return errStore
	}
	return nil
}

func (s *flakyStore) Register(ctx context.Context, in fleet.Instance) error {
	if err := s.try(); err != nil {
		return err
	}
	if s.deaf.Load() {
		return errStore
	}
	s.registrations.Add(1)
	return s.Store.Register(ctx, in)
}

func (s *flakyStore) Heartbeat(ctx context.Context, hb fleet.Heartbeat) error {
	if err := s.try(); err != nil {
		return err
	}
	return s.Store.Heartbeat(ctx, hb)
}

func (s *flakyStore) Deregister(ctx context.Context, id string) error {
	if err := s.try(); err != nil {
		return err
	}
	return s.Store.Deregister(ctx, id)
}

package enclave_test

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/nsm"
)

// fakeModule is a security module whose documents say what they attest.
type fakeModule struct {
	asked   atomic.Int64
	waiting atomic.Int64

	mu   sync.Mutex
	fail error         // guarded by mu
	off  time.Duration // guarded by mu: by which its clock is ahead
	hold chan struct{} // guarded by mu: not nil: answers wait until it is closed
}

func (m *fakeModule) Attest(ctx context.Context, req nsm.Request) ([]byte, error) {
	n := m.asked.Add(1)
	m.mu.Lock()
	fail, hold := m.fail, m.hold
	m.mu.Unlock()
	if hold != nil {
		m.waiting.Add(1)
		defer m.waiting.Add(-1)
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if fail != nil {
		return nil, fail
	}
	return fmt.Appendf(nil, "document %d of %s", n, hex.EncodeToString(req.UserData)), nil
}

// ahead is by how much the module's clock is ahead of the enclave's.
func (m *fakeModule) ahead() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.off
}

func (m *fakeModule) setAhead(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.off = d
}

func (m *fakeModule) failWith(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

// hang makes requests wait until release is called.
func (m *fakeModule) hang() (release func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hold = make(chan struct{})
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		close(m.hold)
		m.hold = nil
	})
}

var errModule = errors.New("the module is broken")

// call is a request as the engine got it.
type call struct {
	Path, ContentType, Body string
	Header                  http.Header
}

// fakeEngine is a guard with an engine behind it, on TLS.
type fakeEngine struct {
	server *httptest.Server

	mu  sync.Mutex
	got []call // guarded by mu
}

func newFakeEngine(answer http.HandlerFunc) *fakeEngine {
	e := &fakeEngine{}
	e.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		e.mu.Lock()
		e.got = append(e.got, call{r.URL.Path, r.Header.Get("Content-Type"), string(body), r.Header})
		e.mu.Unlock()
		answer(w, r)
	}))
	e.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	e.server.StartTLS()
	DeferCleanup(e.server.Close)
	return e
}

// transport reaches the engine whatever the host is called.
func (e *fakeEngine) transport() http.RoundTripper {
	transport := e.server.Client().Transport.(*http.Transport).Clone()
	transport.TLSClientConfig.ServerName = "example.com" // the name in httptest's certificate
	transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, e.server.Listener.Addr().String())
	}
	DeferCleanup(transport.CloseIdleConnections)
	return transport
}

func (e *fakeEngine) calls() []call {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]call(nil), e.got...)
}

// says answers with a JSON body.
func says(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, body)
	}
}

// writesRaw takes the connection over, writes text, and closes it: with TLS's
// close_notify when orderly, as a cut cable would otherwise.
func writesRaw(text string, orderly bool) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		defer GinkgoRecover()
		conn, _, err := http.NewResponseController(w).Hijack()
		Expect(err).NotTo(HaveOccurred())
		_, err = io.WriteString(conn, text)
		Expect(err).NotTo(HaveOccurred())
		if !orderly {
			conn = conn.(*tls.Conn).NetConn()
		}
		Expect(conn.Close()).To(Succeed())
	}
}

// waitsIn gives an engine that tells of each request on entered, and answers
// when it may leave or its client has gone.
func waitsIn(entered chan<- struct{}, leave <-chan struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		select {
		case <-leave:
			says(`{}`)(w, r)
		case <-r.Context().Done():
		}
	}
}

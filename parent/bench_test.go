package parent_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/vsock"
	"github.com/mrgc/mrgc/parent"
	"github.com/mrgc/mrgc/standin/devca"
)

// BenchmarkRelay is what a parent adds to a request of 2 KiB with an answer of
// 64 chunks of 531 bytes, as tokens are sealed: to the enclave and back over a
// Unix socket, without Envoy's TLS and HTTP/2.
func BenchmarkRelay(b *testing.B) {
	const chunks = 64
	chunk := bytes.Repeat([]byte{'c'}, 531)
	dir := b.TempDir()
	listener, err := vsock.Listen("unix:" + filepath.Join(dir, "v"))
	if err != nil {
		b.Fatal(err)
	}
	enclave := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		for range chunks {
			_, _ = w.Write(chunk)
			_ = http.NewResponseController(w).Flush()
		}
	})}
	go func() { _ = enclave.Serve(listener) }()
	defer enclave.Close()

	handler, envoy := benchParent(b, dir)
	request := bytes.Repeat([]byte{'r'}, 2048)
	b.SetBytes(int64(len(request) + chunks*len(chunk)))
	b.ReportAllocs()
	for b.Loop() {
		req := httptest.NewRequest(http.MethodPost, api.PathSealed, bytes.NewReader(request))
		req.TLS = envoy
		answer := &counter{header: http.Header{}}
		handler.ServeHTTP(answer, req)
		if answer.bytes != chunks*len(chunk) {
			b.Fatalf("%d bytes answered", answer.bytes)
		}
	}
}

// benchParent is a parent's handler, and the connection of an Envoy.
func benchParent(b *testing.B, dir string) (http.Handler, *tls.ConnectionState) {
	b.Helper()
	authority, err := devca.New(time.Now())
	if err != nil {
		b.Fatal(err)
	}
	open := func(id identity.ID) (*identity.Source, *x509.Certificate) {
		at := filepath.Join(dir, string(id.Role))
		if err := authority.WriteFiles(at, id, time.Now()); err != nil {
			b.Fatal(err)
		}
		source, err := identity.Open(b.Context(), "dir:"+at, "")
		if err != nil {
			b.Fatal(err)
		}
		pair, err := tls.LoadX509KeyPair(filepath.Join(at, identity.CertificateFile), filepath.Join(at, identity.KeyFile))
		if err != nil {
			b.Fatal(err)
		}
		return source, pair.Leaf
	}
	relay, err := vsock.Listen("unix:" + filepath.Join(dir, "r"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = relay.Close() })
	source, _ := open(parentID)
	_, leaf := open(envoyID)
	service, err := parent.New(parent.Config{
		Instance: fleet.Instance{ID: instanceID, Region: region, Address: "127.0.0.1:1", Models: []string{"m"}},
		Store:    &flakyStore{}, Identity: source, EngineRelay: relay,
		DialEnclave: func(ctx context.Context) (net.Conn, error) { return vsock.Dial(ctx, "unix:"+filepath.Join(dir, "v")) },
		DialGuard:   func(context.Context) (net.Conn, error) { return nil, os.ErrClosed },
	})
	if err != nil {
		b.Fatal(err)
	}
	return service.Handler(), &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}
}

// counter is an [http.ResponseWriter] that counts what it is given.
type counter struct {
	header http.Header
	bytes  int
}

func (c *counter) Header() http.Header         { return c.header }
func (c *counter) WriteHeader(int)             {}
func (c *counter) Flush()                      {}
func (c *counter) Write(p []byte) (int, error) { c.bytes += len(p); return len(p), nil }

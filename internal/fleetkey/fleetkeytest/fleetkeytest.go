// Package fleetkeytest gives tests a fleet's table in DynamoDB Local, behind TLS
// as AWS has it.
package fleetkeytest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/mrgc/mrgc/internal/awscall"
	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/dynamo"
	"github.com/mrgc/mrgc/internal/fleet/dynamodb/dynamodblocal"
	"github.com/mrgc/mrgc/internal/fleetkey"
	"github.com/mrgc/mrgc/internal/state/schema"
	"github.com/mrgc/mrgc/standin/devca"
)

// Region is where the table is.
const Region = "us-east-1"

// ARN is the table's.
const ARN = "arn:aws:dynamodb:" + Region + ":444455556666:table/fleet_keys"

// Credentials are those that the table was made with: DynamoDB Local has a
// database for each.
var Credentials = awscall.Credentials{AccessKeyID: "AKIAENCLAVE", SecretAccessKey: "secret"}

// World is a table, and the way there.
type World struct {
	*dynamo.Client // the SDK's, for what enclaves do not do
	Roots          *x509.CertPool

	address string

	mu       sync.Mutex
	away     bool // guarded by mu
	requests int  // guarded by mu
}

// Start runs DynamoDB Local until the test is over; it skips the test where it
// cannot.
func Start(t testing.TB) *World {
	t.Helper()
	if missing := dynamodblocal.Missing(); missing != "" {
		t.Skip(missing)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	server, err := dynamodblocal.Start(ctx, dynamodblocal.Config{})
	must(err)
	t.Cleanup(server.Kill)
	w := &World{Roots: x509.NewCertPool()}
	w.Client, err = dynamo.NewClient(ctx, awsclient.Settings{
		Region: Region, Endpoint: server.Endpoint(),
		Credentials: credentials.NewStaticCredentialsProvider(Credentials.AccessKeyID, Credentials.SecretAccessKey, ""),
	})
	must(err)
	t.Cleanup(w.Close)
	_, err = w.Ensure(ctx, schema.FleetKeys)
	must(err)
	w.serve(t, must, server.Endpoint())
	return w
}

// serve puts TLS in front.
func (w *World) serve(t testing.TB, must func(error), endpoint string) {
	ca, err := devca.New(time.Now())
	must(err)
	w.Roots.AppendCertsFromPEM(ca.RootPEM())
	certPEM, keyPEM, err := ca.ServerCertificate(time.Now(), "dynamodb."+Region+".amazonaws.com")
	must(err)
	certificate, err := tls.X509KeyPair(certPEM, keyPEM)
	must(err)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS13})
	must(err)
	w.address = listener.Addr().String()
	to, err := url.Parse(endpoint)
	must(err)
	transport := &http.Transport{DisableKeepAlives: true}
	proxy := &httputil.ReverseProxy{
		Transport: transport, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) },
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	front := &http.Server{Handler: w.count(proxy), ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	served := make(chan error, 1)
	go func() { served <- front.Serve(listener) }()
	t.Cleanup(func() {
		must(front.Close())
		<-served
	})
}

func (w *World) count(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.requests++
		away := w.away
		w.mu.Unlock()
		if away {
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(rw, r)
	})
}

// SetAway has the table not answer, or answer again.
func (w *World) SetAway(away bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.away = away
}

// Requests is how many have come.
func (w *World) Requests() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.requests
}

// Dial connects to the table.
func (w *World) Dial(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "tcp", w.address)
}

// Table is as an enclave opens it, with credentials already.
func (w *World) Table(t testing.TB) *fleetkey.Table {
	t.Helper()
	table, err := fleetkey.Open(fleetkey.Config{Table: ARN, Dial: w.Dial, Roots: w.Roots})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(table.CloseIdleConnections)
	table.SetCredentials(Credentials)
	return table
}

// Package softkmstest gives tests a KMS over TLS, and a security module whose
// documents it believes.
package softkmstest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/nsm"
	"github.com/mrgc/mrgc/standin/devca"
	"github.com/mrgc/mrgc/standin/softkms"
	"github.com/mrgc/mrgc/standin/softnsm"
)

// Region is where the KMS is; it has us-west-2, too.
const Region = "us-east-1"

// World is a KMS, who may ask it, and a security module for the running program.
type World struct {
	*softkms.Service
	Address string            // host:port
	CAPEM   []byte            // the root of its certificate, for Host and loopback
	Roots   *x509.CertPool    // the same
	Host    string            // kms.us-east-1.amazonaws.com
	Tenant  softkms.Principal // makes data keys
	Enclave softkms.Principal // decrypts them
	Module  nsm.Module        // measures this program
	PCRs    attest.PCRs       // what it measures
	Root    *x509.Certificate // of the module

	certificate tls.Certificate

	mu     sync.Mutex
	events []softkms.Event // guarded by mu
}

// Start runs one until the test is over.
func Start(t testing.TB) *World {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	w := &World{
		Host:    "kms." + Region + ".amazonaws.com",
		Tenant:  softkms.NewPrincipal("arn:aws:iam::" + softkms.Account + ":role/tenant"),
		Enclave: softkms.NewPrincipal("arn:aws:iam::444455556666:role/gpu-instance"),
		Roots:   x509.NewCertPool(),
	}
	root, err := softnsm.NewRoot(time.Now())
	must(err)
	w.Root = root.Certificate()
	w.Service, err = softkms.New(softkms.Config{
		Regions: []string{Region, "us-west-2"}, Roots: []*x509.Certificate{w.Root}, Audit: w.note,
	})
	must(err)
	w.AddPrincipal(w.Tenant)
	w.AddPrincipal(w.Enclave)

	ca, err := devca.New(time.Now())
	must(err)
	w.CAPEM = ca.RootPEM()
	w.Roots.AppendCertsFromPEM(w.CAPEM)
	certPEM, keyPEM, err := ca.ServerCertificate(time.Now(), w.Host)
	must(err)
	w.certificate, err = tls.X509KeyPair(certPEM, keyPEM)
	must(err)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", w.ServerTLS())
	must(err)
	w.Address = listener.Addr().String()
	server := &http.Server{Handler: w.Service, ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		must(server.Close())
		<-served
	})

	w.PCRs, w.Module = startModule(t, must, root)
	return w
}

func startModule(t testing.TB, must func(error), root *softnsm.Root) (attest.PCRs, nsm.Module) {
	dir, err := os.MkdirTemp("", "nsm") // a short path: a Unix socket's holds some 100 bytes
	must(err)
	t.Cleanup(func() { must(os.RemoveAll(dir)) })
	module, err := softnsm.New(softnsm.Config{Root: root, Region: Region, InstanceID: "i-1", Role: "test"})
	must(err)
	listener, err := net.Listen("unix", filepath.Join(dir, "nsm"))
	must(err)
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- module.Serve(ctx, listener) }()
	t.Cleanup(func() {
		stop()
		must(<-served)
	})
	self, err := os.Executable()
	must(err)
	pcrs, err := softnsm.Measure(self)
	must(err)
	pcrs[3] = attest.ExtendedPCR([]byte("test"))
	client, err := nsm.Dial("unix:" + listener.Addr().String())
	must(err)
	return pcrs, client
}

// ServerTLS lets a test's own server pass for the KMS.
func (w *World) ServerTLS() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{w.certificate}, MinVersion: tls.VersionTLS13}
}

// Dial connects to the KMS.
func (w *World) Dial(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "tcp", w.Address)
}

func (w *World) note(e softkms.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
}

// Client is the SDK's own, signing as a principal. Its connections are closed when
// the test is over.
func (w *World) Client(t testing.TB, who softkms.Principal) *kms.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.Roots, MinVersion: tls.VersionTLS13}}
	t.Cleanup(transport.CloseIdleConnections)
	return kms.New(kms.Options{
		BaseEndpoint: aws.String("https://" + w.Address), Region: Region, RetryMaxAttempts: 1, HTTPClient: &http.Client{Transport: transport},
		Credentials: credentials.NewStaticCredentialsProvider(who.Credentials.AccessKeyID, who.Credentials.SecretAccessKey, who.Credentials.SessionToken),
	})
}

// Events are the calls so far.
func (w *World) Events() []softkms.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.events)
}

package client_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gleak"

	"github.com/mrgc/mrgc/client"
	"github.com/mrgc/mrgc/enclave"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/nsm"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/internal/tenant/tenanttest"
	"github.com/mrgc/mrgc/internal/testclock"
	"github.com/mrgc/mrgc/standin/softnsm"
)

const model = "smol"

// cluster is real enclaves, attested by a software NSM that measures this test's
// own binary, behind as many edges as a test starts. Engines and edges are fakes.
type cluster struct {
	clock  *testclock.Clock
	root   *softnsm.Root
	nsm    nsm.Module
	key    credential.Key
	engine engineFunc

	mu       sync.Mutex
	enclaves []*enclave.Enclave // guarded by mu
}

// engineFunc answers for every enclave's engine.
type engineFunc func(*http.Request) (*http.Response, error)

func (f engineFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// newCluster starts a cluster of one enclave.
func newCluster() *cluster {
	GinkgoHelper()
	DeferCleanup(func(before []gleak.Goroutine) {
		Eventually(gleak.Goroutines).WithTimeout(5 * time.Second).ShouldNot(gleak.HaveLeaked(before))
	}, gleak.Goroutines())
	c := &cluster{clock: testclock.At(time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC))}
	c.engine = func(*http.Request) (*http.Response, error) { return answer("application/json", body(reply)), nil }
	var err error
	c.key, err = credential.New(rand.Reader, "acme")
	Expect(err).NotTo(HaveOccurred())
	c.root, err = softnsm.NewRoot(c.clock.Now())
	Expect(err).NotTo(HaveOccurred())
	c.nsm = c.serveNSM(development)
	c.enclaves = []*enclave.Enclave{c.newEnclave()}
	return c
}

// development is the role of the cluster's enclaves, which PCR3 has.
const development = "development"

func (c *cluster) serveNSM(role string) nsm.Module {
	GinkgoHelper()
	module, err := softnsm.New(softnsm.Config{Root: c.root, Region: "us-east-1", InstanceID: "use1-0", Role: role, Now: c.clock.Now})
	Expect(err).NotTo(HaveOccurred())
	dir, err := os.MkdirTemp("", "mrgc") // short: a socket's path is limited
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(os.RemoveAll, dir)
	socket := filepath.Join(dir, "nsm")
	listener, err := net.Listen("unix", socket)
	Expect(err).NotTo(HaveOccurred())
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- module.Serve(ctx, listener) }()
	DeferCleanup(func() {
		cancel()
		Eventually(served).Should(Receive(BeNil()))
	})
	dialled, err := nsm.Dial("unix:" + socket)
	Expect(err).NotTo(HaveOccurred())
	return dialled
}

func (c *cluster) newEnclave(changes ...func(*enclave.Config)) *enclave.Enclave {
	GinkgoHelper()
	config := enclave.Config{
		Model: model, Region: "use1", Mode: seal.ModeProcess, NSM: c.nsm, Now: c.clock.Now,
		Tenants: tenanttest.Keeper(GinkgoTB(), tenanttest.Tenant(c.key.Tenant(), "edge", string(c.key.EnclaveToken()))),
		Engine:  engineFunc(func(r *http.Request) (*http.Response, error) { return c.engine(r) }),
	}
	for _, change := range changes {
		change(&config)
	}
	e, err := enclave.New(context.Background(), config)
	Expect(err).NotTo(HaveOccurred())
	return e
}

// replace has other enclaves answer from now on.
func (c *cluster) replace(enclaves ...*enclave.Enclave) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.enclaves = enclaves
}

func (c *cluster) present() []*enclave.Enclave {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.enclaves
}

// recipients is what the keys route says now.
func (c *cluster) recipients() []api.Recipient {
	var all []api.Recipient
	for _, e := range c.present() {
		all = append(all, recipientsOf(e)...)
	}
	return all
}

func recipientsOf(e *enclave.Enclave) []api.Recipient {
	recorder := httptest.NewRecorder()
	e.Handler().ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, "/recipients", nil))
	var answer api.Recipients
	if json.Unmarshal(recorder.Body.Bytes(), &answer) != nil {
		return nil
	}
	return answer.Recipients
}

// measured is the release that this test's binary is.
var measured = sync.OnceValues(func() (attest.Release, error) {
	self, err := os.Executable()
	if err != nil {
		return attest.Release{}, err
	}
	pcrs, err := softnsm.Measure(self)
	return attest.Release{Version: 3, Name: "this test", PCRs: pcrs}, err
})

// config trusts the cluster, and reaches it by edges.
func (c *cluster) config(edges ...*edge) client.Config {
	GinkgoHelper()
	release, err := measured()
	Expect(err).NotTo(HaveOccurred())
	config := client.Config{
		Policy: client.Policy{Releases: []attest.Release{release}, DevelopmentRoot: c.root.Certificate()},
		Now:    c.clock.Now, RootCAs: x509.NewCertPool(),
	}
	for _, e := range edges {
		config.Endpoints = append(config.Endpoints, e.url)
		if e.server != nil {
			config.RootCAs.AddCert(e.server.Certificate())
		}
	}
	return config
}

// tenant is an SDK whose HTTP client seals, and its API key.
type tenant struct {
	sealing *client.Client
	http    *http.Client
	key     string
}

func (c *cluster) tenant(config client.Config) *tenant {
	GinkgoHelper()
	sealing, err := client.New(config)
	Expect(err).NotTo(HaveOccurred())
	t := &tenant{sealing: sealing, http: &http.Client{Transport: sealing}, key: c.key.Text()}
	DeferCleanup(t.http.CloseIdleConnections)
	return t
}

const (
	baseURL = "https://mrgc/v1"
	reply   = `{"choices":[{"message":{"content":"Paris."}}]}`
	prompt  = "the capital of France, please"
)

var chat = `{"model":"` + model + `","messages":[{"role":"user","content":"` + prompt + `"}]}`

// send makes a request the way an SDK does.
func (t *tenant) send(ctx context.Context, method, path string, content io.Reader) (*http.Response, error) {
	GinkgoHelper()
	req, err := http.NewRequestWithContext(ctx, method, baseURL+path, content)
	Expect(err).NotTo(HaveOccurred())
	if t.key != "" {
		req.Header.Set("Authorization", "Bearer "+t.key)
	}
	resp, err := t.http.Do(req)
	if err == nil {
		DeferCleanup(resp.Body.Close)
	}
	return resp, err
}

// ask sends a chat request and gives the response.
func (t *tenant) ask(ctx context.Context) *http.Response {
	GinkgoHelper()
	resp, err := t.send(ctx, http.MethodPost, "/chat/completions", body(chat))
	Expect(err).NotTo(HaveOccurred())
	return resp
}

// expectReply wants the engine's whole answer.
func expectReply(resp *http.Response) {
	GinkgoHelper()
	Expect(readAll(resp)).To(Equal(reply))
	Expect(resp.StatusCode).To(Equal(http.StatusOK))
}

// refusal reads an answer that must be an error in OpenAI's shape.
func refusal(resp *http.Response) *api.Error {
	GinkgoHelper()
	Expect(resp.Header.Get("Content-Type")).To(Equal("application/json"))
	return api.ParseError(resp.StatusCode, []byte(readAll(resp)))
}

func readAll(resp *http.Response) string {
	GinkgoHelper()
	content, err := io.ReadAll(resp.Body)
	Expect(err).NotTo(HaveOccurred())
	return string(content)
}

func body(text string) io.ReadCloser { return io.NopCloser(bytes.NewReader([]byte(text))) }

// answer is an engine's.
func answer(contentType string, content io.ReadCloser) *http.Response {
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {contentType}}, Body: content}
}

// edge is what a tenant sees of one region: TLS, and the three routes. It keeps
// everything that it has been sent.
type edge struct {
	url     string
	server  *httptest.Server // nil: nobody listens
	cluster *cluster

	mu     sync.Mutex
	seen   []seen           // guarded by mu
	routes map[string]route // guarded by mu: replace what the cluster does
	early  earlyRoute       // guarded by mu; may be nil
}

// seen is a request as it arrived.
type seen struct {
	path, url string
	header    http.Header
	body      []byte
}

type route func(w http.ResponseWriter, r *http.Request)

// earlyRoute sees a sealed request before its body is read, and says whether that was all.
type earlyRoute func(w http.ResponseWriter, r *http.Request) (done bool)

func (c *cluster) startEdge() *edge { return c.startEdgeFor(tls.NoClientCert) }

// startEdgeFor starts an edge for clients with or without a certificate.
func (c *cluster) startEdgeFor(who tls.ClientAuthType) *edge {
	e := &edge{cluster: c, routes: map[string]route{}}
	e.server = httptest.NewUnstartedServer(e)
	e.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	e.server.EnableHTTP2 = true
	e.server.TLS = &tls.Config{ClientAuth: who}
	e.server.StartTLS()
	DeferCleanup(e.server.Close)
	e.url = e.server.URL
	return e
}

// on replaces a route.
func (e *edge) on(path string, answer route) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.routes[path] = answer
}

// onHeaders sets the early route.
func (e *edge) onHeaders(early earlyRoute) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.early = early
}

// requests are those that came to a path, oldest first.
func (e *edge) requests(path string) []seen {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(e.seen), func(s seen) bool { return s.path != path })
}

// count is for Eventually: how often a path was asked for.
func (e *edge) count(path string) func() int {
	return func() int { return len(e.requests(path)) }
}

func (e *edge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	early := e.early
	e.mu.Unlock()
	if early != nil && r.URL.Path == api.PathSealed && early(w, r) {
		return
	}
	content, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(content))
	e.mu.Lock()
	e.seen = append(e.seen, seen{path: r.URL.Path, url: r.URL.String(), header: r.Header.Clone(), body: content})
	answer := e.routes[r.URL.Path]
	e.mu.Unlock()
	if answer == nil {
		answer = e.cluster.route(r.URL.Path)
	}
	answer(w, r)
}

// route is what a real cluster does.
func (c *cluster) route(path string) route {
	switch path {
	case api.PathKeys:
		return func(w http.ResponseWriter, _ *http.Request) { writeRecipients(w, c.recipients()) }
	case api.PathModels:
		return func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"object":"list","data":[{"id":"smol","object":"model","created":1,"owned_by":"mrgc","metadata":{"modes":["process"]}}]}`)
		}
	case api.PathSealed:
		return c.serveSealed
	default:
		return http.NotFound
	}
}

// serveSealed has the first enclave that holds one of the keys answer, as the
// picker does.
func (c *cluster) serveSealed(w http.ResponseWriter, r *http.Request) {
	enclaves := c.present()
	wanted, _ := seal.ParseKeyIDs(r.Header.Get(api.HeaderRecipients))
	holds := func(e *enclave.Enclave) bool {
		return slices.ContainsFunc(recipientsOf(e), func(offered api.Recipient) bool { return slices.Contains(wanted, keyID(offered)) })
	}
	enclaves[max(0, slices.IndexFunc(enclaves, holds))].Handler().ServeHTTP(w, r)
}

func keyID(offered api.Recipient) seal.KeyID {
	recipient, err := seal.ParseRecipient(offered.Claims)
	if err != nil {
		return seal.KeyID{}
	}
	return recipient.KeyID()
}

func writeRecipients(w http.ResponseWriter, recipients []api.Recipient) {
	_ = json.NewEncoder(w).Encode(api.Recipients{Recipients: recipients})
}

package enclave_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gleak"

	"github.com/mrgc/mrgc/enclave"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/internal/size"
	"github.com/mrgc/mrgc/internal/tenant/tenanttest"
	"github.com/mrgc/mrgc/internal/testclock"
)

func TestEnclave(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "enclave")
}

const (
	model  = "qwen2.5-0.5b-instruct"
	tenant = "acme"
	// marker is in every request, and after each test nowhere in the log.
	marker = "PLAINTEXT-MARKER-7c1e"
	chat   = `{"model":"` + model + `","messages":[{"role":"user","content":"` + marker + `"}]}`
	stream = `{"model":"` + model + `","stream":true,"messages":[{"role":"user","content":"` + marker + `"}]}`
)

// logs is all that an enclave has logged.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// running is an enclave that serves, with all that surrounds it.
type running struct {
	url    string
	client *http.Client
	clock  *testclock.Clock // far from the real time, so that a test notices when the two are mixed
	module *fakeModule
	engine *fakeEngine
	logs   *logs
	key    credential.Key

	service *enclave.Enclave // the one that serves
}

// start runs an enclave between a fake security module and a fake engine.
func start(answer http.HandlerFunc, options ...func(*enclave.Config)) *running {
	GinkgoHelper()
	expectNoLeaks()
	return startBeside(answer, options...)
}

// startBeside is start of one that runs beside another, which looks for leaks.
func startBeside(answer http.HandlerFunc, options ...func(*enclave.Config)) *running {
	GinkgoHelper()
	r := &running{
		clock:  testclock.At(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)),
		module: &fakeModule{},
		engine: newFakeEngine(answer),
		logs:   &logs{},
		key:    newAPIKey(),
	}
	config := enclave.Config{
		Model: model, Region: "use1", Mode: seal.ModeProcess,
		NSM: r.module, Engine: r.engine.transport(), Now: r.clock.Now, AnswerWait: enclave.DefaultAnswerWait,
		DocumentTime: func([]byte) (time.Time, error) { return r.clock.Now().Add(r.module.ahead()), nil },
		Tenants:      tenanttest.Keeper(GinkgoTB(), tenanttest.Tenant(tenant, "edge", string(r.key.EnclaveToken()))),
		Logger:       slog.New(slog.NewTextHandler(r.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, option := range options {
		option(&config)
	}
	service, err := enclave.New(context.Background(), config)
	Expect(err).NotTo(HaveOccurred())
	r.serve(service)
	DeferCleanup(func() {
		Expect(r.logs.String()).NotTo(ContainSubstring(marker))
		Expect(r.logs.String()).NotTo(ContainSubstring(string(r.key.EnclaveToken())))
	})
	return r
}

// serve runs the service until the test is over.
func (r *running) serve(service *enclave.Enclave) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	Expect(err).NotTo(HaveOccurred())
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- service.Serve(ctx, listener) }()
	transport := &http.Transport{DisableCompression: true}
	r.service = service
	r.url, r.client = "http://"+listener.Addr().String(), &http.Client{Transport: transport}
	DeferCleanup(func() {
		stop()
		Eventually(served).Should(Receive(BeNil()))
		transport.CloseIdleConnections()
	})
}

func newAPIKey() credential.Key {
	GinkgoHelper()
	key, err := credential.New(rand.Reader, tenant)
	Expect(err).NotTo(HaveOccurred())
	return key
}

func expectNoLeaks() {
	DeferCleanup(func(before []gleak.Goroutine) {
		Eventually(gleak.Goroutines).WithTimeout(10 * time.Second).ShouldNot(gleak.HaveLeaked(before))
	}, gleak.Goroutines())
}

// recipients is what the enclave offers to seal to, newest first, and the
// documents that go with them.
func (r *running) recipients() (keys []*seal.Recipient, documents []string) {
	GinkgoHelper()
	resp, err := r.client.Get(r.url + "/recipients")
	Expect(err).NotTo(HaveOccurred())
	defer resp.Body.Close()
	Expect(resp.StatusCode).To(Equal(http.StatusOK))
	var offered api.Recipients
	Expect(json.NewDecoder(resp.Body).Decode(&offered)).To(Succeed())
	for _, one := range offered.Recipients {
		key, err := seal.ParseRecipient(one.Claims)
		Expect(err).NotTo(HaveOccurred())
		keys, documents = append(keys, key), append(documents, string(one.Attestation))
	}
	return keys, documents
}

// stranger is a key that another enclave holds.
func (r *running) stranger() *seal.Recipient {
	GinkgoHelper()
	other, err := seal.NewRecipientKey(seal.Claims{
		Model: model, Region: "use1", Mode: seal.ModeProcess,
		NotBefore: r.clock.Now(), NotAfter: r.clock.Now().Add(time.Hour),
	})
	Expect(err).NotTo(HaveOccurred())
	return other.Recipient
}

// seal seals a chat request as the tenant's client does; change alters it first.
func (r *running) seal(body string, change ...func(*seal.Request)) *seal.Sealed {
	GinkgoHelper()
	keys, _ := r.recipients()
	return r.sealTo(keys[:1], body, change...)
}

func (r *running) sealTo(keys []*seal.Recipient, body string, change ...func(*seal.Request)) *seal.Sealed {
	GinkgoHelper()
	req := seal.Request{
		Operation: seal.OpChatCompletions, Model: model, Tenant: tenant, Size: sizeOf(body), Affinity: "c7",
		Expiry: r.clock.Now().Add(time.Minute),
		Payload: seal.Payload{
			Credential: r.key.EnclaveToken(), CacheSecret: []byte(marker), Body: []byte(body),
		},
	}
	_, _ = rand.Read(req.RequestID[:])
	for _, f := range change {
		f(&req)
	}
	sealed, err := seal.Seal(rand.Reader, req, keys)
	Expect(err).NotTo(HaveOccurred())
	return sealed
}

// sizeOf is what the client declares for a request.
func sizeOf(body string) string {
	var fields map[string]json.RawMessage
	_ = json.Unmarshal([]byte(body), &fields) // of what is no request, that of an empty one
	return size.Of(fields).String()
}

// post is the HTTP request that carries a sealed one.
func (r *running) post(sealed *seal.Sealed) *http.Request {
	GinkgoHelper()
	req, err := http.NewRequest(http.MethodPost, r.url+api.PathSealed, bytes.NewReader(sealed.Body))
	Expect(err).NotTo(HaveOccurred())
	for name, value := range map[string]string{
		"Content-Type":       api.ContentTypeSealedRequest,
		api.HeaderModel:      sealed.Headers.Model,
		api.HeaderTenant:     sealed.Headers.Tenant,
		api.HeaderAffinity:   sealed.Headers.Affinity,
		api.HeaderSize:       sealed.Headers.Size,
		api.HeaderRequestID:  sealed.Headers.RequestID.String(),
		api.HeaderRecipients: seal.FormatKeyIDs(sealed.Headers.KeyIDs),
	} {
		req.Header.Set(name, value)
	}
	return req
}

// send gives the response to a request; its body is closed after the test.
func (r *running) send(req *http.Request) *http.Response {
	GinkgoHelper()
	resp, err := r.client.Do(req)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(resp.Body.Close)
	return resp
}

// answer is what the tenant's client makes of a response.
type answer struct {
	head seal.Head
	body string
	err  error // nil: the answer is complete
	end  seal.End

	used, outcome string // what the parent is told
}

// ask seals, sends and opens.
func (r *running) ask(body string, change ...func(*seal.Request)) answer {
	GinkgoHelper()
	sealed := r.seal(body, change...)
	return open(sealed, r.send(r.post(sealed)))
}

func open(sealed *seal.Sealed, resp *http.Response) answer {
	GinkgoHelper()
	Expect(resp.StatusCode).To(Equal(http.StatusOK))
	Expect(resp.Header.Get("Content-Type")).To(Equal(api.ContentTypeSealedResponse))
	reader := sealed.OpenResponse(resp.Body)
	var a answer
	if a.head, a.err = reader.Head(); a.err != nil {
		return a
	}
	var body []byte
	body, a.err = io.ReadAll(reader)
	a.body = string(body)
	a.end, _ = reader.End()               // of an incomplete answer none
	_, _ = io.Copy(io.Discard, resp.Body) // of an incomplete one something may be left
	a.used, a.outcome = resp.Trailer.Get(api.HeaderUsage), resp.Trailer.Get(api.HeaderOutcome)
	return a
}

// expectRefused wants an unsealed error, and that the engine heard of nothing.
func (r *running) expectRefused(resp *http.Response, status int, code string) {
	GinkgoHelper()
	Expect(resp.StatusCode).To(Equal(status))
	expectCode(readAll(resp), status, code)
	Expect(r.engine.calls()).To(BeEmpty())
}

// expectSealedRefusal wants an error that only the tenant can read.
func (r *running) expectSealedRefusal(a answer, status int, code string) {
	GinkgoHelper()
	Expect(a.err).NotTo(HaveOccurred())
	Expect(a.head.Status).To(Equal(status))
	Expect(a.head.ContentType).To(Equal("application/json"))
	expectCode(a.body, status, code)
}

func expectCode(body string, status int, code string) {
	GinkgoHelper()
	Expect(api.ParseError(status, []byte(body))).To(HaveField("Code", code), body)
	Expect(strings.Contains(body, marker)).To(BeFalse(), "the error repeats the request")
}

func readAll(resp *http.Response) string {
	GinkgoHelper()
	body, err := io.ReadAll(resp.Body)
	Expect(err).NotTo(HaveOccurred())
	return string(body)
}

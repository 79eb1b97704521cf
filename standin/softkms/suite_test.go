package softkms_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/nsm"
	"github.com/mrgc/mrgc/standin/softkms"
	"github.com/mrgc/mrgc/standin/softnsm"
)

func TestSoftKMS(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "standin/softkms")
}

// world is a service over real HTTP, two principals, and a security module that
// measures this test's own program.
type world struct {
	service        *softkms.Service
	url            string
	tenant, nobody softkms.Principal
	root           *softnsm.Root
	module         nsm.Module
	pcrs           attest.PCRs // of this program
	key            *rsa.PrivateKey

	mu     sync.Mutex
	events []softkms.Event // guarded by mu
	now    time.Time       // guarded by mu; zero: the present
}

const role = "arn:aws:iam::444455556666:role/enclave-hosts"

func newWorld() *world {
	GinkgoHelper()
	w := &world{tenant: softkms.NewPrincipal("arn:aws:iam::111122223333:role/tenant"), nobody: softkms.NewPrincipal("arn:aws:iam::111122223333:role/nobody")}
	var err error
	w.root, err = softnsm.NewRoot(time.Now().Add(-time.Hour))
	Expect(err).NotTo(HaveOccurred())
	w.service, err = softkms.New(softkms.Config{
		Regions: []string{"us-east-1", "us-west-2"}, Roots: []*x509.Certificate{w.root.Certificate()}, Now: w.clock,
		Audit: func(e softkms.Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, e)
		},
	})
	Expect(err).NotTo(HaveOccurred())
	w.service.AddPrincipal(w.tenant)
	w.service.AddPrincipal(w.nobody)
	server := httptest.NewServer(w.service)
	DeferCleanup(server.Close)
	w.url = server.URL
	w.module = serveModule(w.root, time.Now)
	self, err := os.Executable()
	Expect(err).NotTo(HaveOccurred())
	w.pcrs, err = softnsm.Measure(self)
	Expect(err).NotTo(HaveOccurred())
	w.pcrs[3] = attest.ExtendedPCR([]byte(role))
	w.key, err = rsa.GenerateKey(rand.Reader, 2048)
	Expect(err).NotTo(HaveOccurred())
	return w
}

func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.now.IsZero() {
		return time.Now()
	}
	return w.now
}

// serveModule serves a module under root until the spec ends.
func serveModule(root *softnsm.Root, now func() time.Time) nsm.Module {
	GinkgoHelper()
	dir, err := os.MkdirTemp("", "nsm") // a short path: a Unix socket's holds some 100 bytes
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(os.RemoveAll, dir)
	module, err := softnsm.New(softnsm.Config{Root: root, Region: "us-east-1", InstanceID: "i-1", Role: role, Now: now})
	Expect(err).NotTo(HaveOccurred())
	listener, err := net.Listen("unix", filepath.Join(dir, "nsm"))
	Expect(err).NotTo(HaveOccurred())
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- module.Serve(ctx, listener) }()
	DeferCleanup(func() {
		stop()
		Expect(<-served).To(Succeed())
	})
	client, err := nsm.Dial("unix:" + listener.Addr().String())
	Expect(err).NotTo(HaveOccurred())
	return client
}

// as gives the SDK's own client, signing as a principal. edit may change what is
// on its way.
func (w *world) as(p softkms.Principal, region string, edit func(*http.Request)) *kms.Client {
	return kms.New(kms.Options{
		BaseEndpoint: aws.String(w.url), Region: region, RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider(p.Credentials.AccessKeyID, p.Credentials.SecretAccessKey, p.Credentials.SessionToken),
		HTTPClient:  &http.Client{Transport: editing{edit}},
	})
}

type editing struct{ edit func(*http.Request) }

func (e editing) RoundTrip(r *http.Request) (*http.Response, error) {
	if e.edit != nil {
		r = r.Clone(r.Context())
		e.edit(r)
	}
	return http.DefaultTransport.RoundTrip(r)
}

// document is an attestation document for the world's RSA key.
func (w *world) document(ctx SpecContext) []byte { return w.documentOf(ctx, w.module) }

func (w *world) documentOf(ctx SpecContext, module nsm.Module) []byte {
	GinkgoHelper()
	public, err := x509.MarshalPKIXPublicKey(&w.key.PublicKey)
	Expect(err).NotTo(HaveOccurred())
	document, err := module.Attest(ctx, nsm.Request{PublicKey: public})
	Expect(err).NotTo(HaveOccurred())
	return document
}

func recipient(document []byte) *types.RecipientInfo {
	return &types.RecipientInfo{AttestationDocument: document, KeyEncryptionAlgorithm: types.KeyEncryptionMechanismRsaesOaepSha256}
}

func (w *world) lastEvent() softkms.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.events[len(w.events)-1]
}

// statements make a key policy.
func statements(all ...map[string]any) []byte {
	out, err := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": all})
	if err != nil {
		panic(err)
	}
	return out
}

// allow lets everyone do what is named, when the conditions hold.
func allow(conditions map[string]any, actions ...string) map[string]any {
	return statement("Allow", conditions, actions)
}

func deny(conditions map[string]any, actions ...string) map[string]any {
	return statement("Deny", conditions, actions)
}

func statement(effect string, conditions map[string]any, actions []string) map[string]any {
	st := map[string]any{"Effect": effect, "Principal": "*", "Action": actions, "Resource": "*"}
	if conditions != nil {
		st["Condition"] = conditions
	}
	return st
}

func condition(operator, key string, values ...string) map[string]any {
	return map[string]any{operator: map[string]any{key: values}}
}

// code is KMS's code of an error; empty for none.
func code(err error) string {
	GinkgoHelper()
	if err == nil {
		return ""
	}
	var api smithy.APIError
	Expect(errors.As(err, &api)).To(BeTrue(), "%v", err)
	return api.ErrorCode()
}

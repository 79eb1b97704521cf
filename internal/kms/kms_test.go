package kms_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gleak"

	"github.com/mrgc/mrgc/internal/kms"
	"github.com/mrgc/mrgc/internal/nsm"
	"github.com/mrgc/mrgc/standin/softkms"
	"github.com/mrgc/mrgc/standin/softkms/softkmstest"
)

func TestKMS(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "internal/kms")
}

// policy lets the tenant make data keys, and an enclave with that PCR0 decrypt.
func policy(w *softkmstest.World, pcr0 string) []byte {
	out, err := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": []map[string]any{
		{"Effect": "Allow", "Principal": map[string]any{"AWS": w.Tenant.ARN}, "Action": "kms:GenerateDataKey", "Resource": "*"},
		{
			"Effect": "Allow", "Principal": map[string]any{"AWS": w.Enclave.ARN}, "Action": "kms:Decrypt", "Resource": "*",
			"Condition": map[string]any{"StringEqualsIgnoreCase": map[string]any{"kms:RecipientAttestation:ImageSha384": pcr0}},
		},
	}})
	if err != nil {
		panic(err)
	}
	return out
}

func credentialsOf(p softkms.Principal) kms.Credentials {
	return kms.Credentials{AccessKeyID: p.Credentials.AccessKeyID, SecretAccessKey: p.Credentials.SecretAccessKey, SessionToken: p.Credentials.SessionToken}
}

// recorder keeps the documents that were asked for.
type recorder struct {
	nsm.Module
	mu       sync.Mutex
	requests []nsm.Request // guarded by mu
	fail     error
}

func (r *recorder) Attest(ctx context.Context, req nsm.Request) ([]byte, error) {
	r.mu.Lock()
	r.requests = append(r.requests, req)
	r.mu.Unlock()
	if r.fail != nil {
		return nil, r.fail
	}
	return r.Module.Attest(ctx, req)
}

var _ = Describe("Decrypt", func() {
	var (
		w      *softkmstest.World
		module *recorder
		tied   = map[string]string{"mrgc:tenant": "acme", "mrgc:request-id": "0f"}
	)
	BeforeEach(func() {
		DeferCleanup(func(before []gleak.Goroutine) {
			Eventually(gleak.Goroutines).WithTimeout(10 * time.Second).ShouldNot(gleak.HaveLeaked(before))
		}, gleak.Goroutines())
		w = softkmstest.Start(GinkgoTB())
		_, err := w.CreateKey("mrk-tenant", policy(w, w.PCRs[0].String()))
		Expect(err).NotTo(HaveOccurred())
		module = &recorder{Module: w.Module}
	})

	client := func(change ...func(*kms.Config)) *kms.Client {
		GinkgoHelper()
		config := kms.Config{Region: softkmstest.Region, Dial: w.Dial, NSM: module, Roots: w.Roots}
		for _, f := range change {
			f(&config)
		}
		c, err := kms.New(config)
		Expect(err).NotTo(HaveOccurred())
		c.SetCredentials(credentialsOf(w.Enclave))
		DeferCleanup(c.CloseIdleConnections)
		return c
	}
	dataKey := func() (plaintext, ciphertext []byte) {
		GinkgoHelper()
		plaintext, ciphertext, err := w.DataKey("mrk-tenant", tied)
		Expect(err).NotTo(HaveOccurred())
		return plaintext, ciphertext
	}

	It("gives a data key to an enclave that the key's policy names, by one call", func(ctx SpecContext) {
		want, ciphertext := dataKey()
		Expect(client().Decrypt(ctx, ciphertext, tied)).To(Equal(want))
		events := w.Events()
		Expect(events).To(HaveLen(1))
		Expect(events[0]).To(Equal(softkms.Event{
			Action: "kms:Decrypt", Region: softkmstest.Region, Principal: w.Enclave.ARN, Key: softkms.ARN(softkmstest.Region, "mrk-tenant"),
			Context: tied, PCR0: w.PCRs[0].String(),
		}))
	})

	It("makes an RSA key for each call, and attests nothing else", func(ctx SpecContext) {
		_, ciphertext := dataKey()
		c := client()
		for range 3 {
			_, err := c.Decrypt(ctx, ciphertext, tied)
			Expect(err).NotTo(HaveOccurred())
		}
		seen := map[string]bool{}
		for _, req := range module.requests {
			Expect(req.UserData).To(BeEmpty(), "else a client could take the document for one of claims")
			seen[string(req.PublicKey)] = true
		}
		Expect(seen).To(HaveLen(3))
	})

	It("signs with temporary credentials, and with the last that it was given", func(ctx SpecContext) {
		want, ciphertext := dataKey()
		temporary := w.Enclave
		temporary.Credentials = softkms.Credentials{AccessKeyID: "ASIATEMPORARY", SecretAccessKey: "secret", SessionToken: "a token/with+signs="}
		w.AddPrincipal(temporary)
		c := client()
		c.SetCredentials(credentialsOf(temporary))
		Expect(c.AccessKeyID()).To(Equal("ASIATEMPORARY"))
		Expect(c.Decrypt(ctx, ciphertext, tied)).To(Equal(want))
	})

	DescribeTable("says whose fault it is",
		func(ctx SpecContext, change func(*kms.Client) (ciphertext []byte, encryptionContext map[string]string), class error, detail string) {
			want, ciphertext := dataKey()
			c := client()
			Expect(c.Decrypt(ctx, ciphertext, tied)).To(Equal(want), "without the change")
			changed, changedContext := change(c)
			if changed == nil {
				changed = ciphertext
			}
			if changedContext == nil {
				changedContext = tied
			}
			_, err := c.Decrypt(ctx, changed, changedContext)
			Expect(err).To(MatchError(class))
			Expect(err).To(MatchError(ContainSubstring(detail)))
		},
		Entry("a policy for another image", func(*kms.Client) ([]byte, map[string]string) {
			Expect(w.PutKeyPolicy("mrk-tenant", policy(w, strings.Repeat("ab", 48)))).To(Succeed())
			return nil, nil
		}, kms.ErrDenied, "AccessDeniedException"),
		Entry("a key that is disabled", func(*kms.Client) ([]byte, map[string]string) {
			Expect(w.SetEnabled("mrk-tenant", false)).To(Succeed())
			return nil, nil
		}, kms.ErrDenied, "DisabledException"),
		Entry("credentials of somebody else", func(c *kms.Client) ([]byte, map[string]string) {
			c.SetCredentials(credentialsOf(w.Tenant))
			return nil, nil
		}, kms.ErrDenied, "AccessDeniedException"),
		Entry("another context", func(*kms.Client) ([]byte, map[string]string) {
			return nil, map[string]string{"mrgc:tenant": "other", "mrgc:request-id": "0f"}
		}, kms.ErrCiphertext, "InvalidCiphertextException"),
		Entry("what is no ciphertext", func(*kms.Client) ([]byte, map[string]string) { return []byte("x"), nil },
			kms.ErrCiphertext, "InvalidCiphertextException"),
		Entry("credentials that are none", func(c *kms.Client) ([]byte, map[string]string) {
			c.SetCredentials(kms.Credentials{AccessKeyID: "AKIANOBODY", SecretAccessKey: "x"})
			return nil, nil
		}, kms.ErrUnavailable, "UnrecognizedClientException"),
		Entry("a security module that fails", func(*kms.Client) ([]byte, map[string]string) {
			module.fail = errors.New("the module is broken")
			return nil, nil
		}, kms.ErrUnavailable, "the module is broken"),
	)

	It("asks nobody without credentials", func(ctx SpecContext) {
		c, err := kms.New(kms.Config{Region: softkmstest.Region, NSM: module, Roots: w.Roots, Dial: func(context.Context) (net.Conn, error) {
			Fail("dialled")
			return nil, nil
		}})
		Expect(err).NotTo(HaveOccurred())
		_, err = c.Decrypt(ctx, []byte("x"), tied)
		Expect(err).To(MatchError(kms.ErrUnavailable))
		Expect(c.AccessKeyID()).To(BeEmpty())
	})

	DescribeTable("trusts no one else on the pipe",
		func(ctx SpecContext, change func(*kms.Config)) {
			want, ciphertext := dataKey()
			Expect(client().Decrypt(ctx, ciphertext, tied)).To(Equal(want), "without the change")
			before := len(w.Events())
			_, err := client(change).Decrypt(ctx, ciphertext, tied)
			Expect(err).To(MatchError(kms.ErrUnavailable))
			Expect(err).To(MatchError(ContainSubstring("certificate")))
			Expect(w.Events()).To(HaveLen(before), "nothing was sent")
		},
		Entry("by default, whom Amazon's roots do not certify", func(c *kms.Config) { c.Roots = nil }),
		Entry("a certificate for another host", func(c *kms.Config) { c.Host = "kms.us-west-2.amazonaws.com" }),
	)

	DescribeTable("refuses an answer",
		func(ctx SpecContext, status int, body string, class error) {
			c := client(func(config *kms.Config) { config.Dial = answering(w, status, body) })
			_, err := c.Decrypt(ctx, []byte("x"), tied)
			Expect(err).To(MatchError(class))
			Expect(err).NotTo(MatchError(ContainSubstring("quoted")))
		},
		Entry("with a plaintext only", http.StatusOK, `{"Plaintext":"AAAA","KeyId":"k"}`, kms.ErrUnavailable),
		Entry("that is not CMS", http.StatusOK, `{"CiphertextForRecipient":"AAAA"}`, kms.ErrUnavailable),
		Entry("that is not JSON", http.StatusOK, `quoted`, kms.ErrUnavailable),
		Entry("that is too large", http.StatusOK, `{"CiphertextForRecipient":"`+strings.Repeat("A", 65<<10)+`"}`, kms.ErrUnavailable),
		Entry("of KMS's own failure", http.StatusInternalServerError, `{"__type":"KMSInternalException","message":"quoted"}`, kms.ErrUnavailable),
		Entry("of throttling", http.StatusBadRequest, `{"__type":"ThrottlingException"}`, kms.ErrUnavailable),
		Entry("with a strange code", http.StatusBadRequest, `{"__type":"quoted\nline"}`, kms.ErrUnavailable),
		Entry("with a namespace before the code", http.StatusBadRequest, `{"__type":"com.amazonaws.kms#AccessDeniedException"}`, kms.ErrDenied),
		Entry("that sends it elsewhere", http.StatusFound, `quoted`, kms.ErrUnavailable),
	)

	It("decrypts by a key that it names, and by no other", func(ctx SpecContext) {
		want, ciphertext := dataKey()
		_, err := w.CreateKey("mrk-planted", policy(w, w.PCRs[0].String()))
		Expect(err).NotTo(HaveOccurred())
		_, planted, err := w.DataKey("mrk-planted", tied)
		Expect(err).NotTo(HaveOccurred())
		c := client()
		Expect(c.DecryptBy(ctx, softkms.ARN(softkmstest.Region, "mrk-tenant"), ciphertext, tied)).To(Equal(want))
		Expect(c.Decrypt(ctx, planted, tied)).To(HaveLen(32), "KMS would")
		_, err = c.DecryptBy(ctx, softkms.ARN(softkmstest.Region, "mrk-tenant"), planted, tied)
		Expect(err).To(MatchError(kms.ErrCiphertext))
		Expect(err).To(MatchError(ContainSubstring("IncorrectKeyException")))
	})

	It("has a data key made for itself alone, which decrypts again", func(ctx SpecContext) {
		allowed := []byte(strings.ReplaceAll(string(policy(w, w.PCRs[0].String())), `"kms:Decrypt"`, `["kms:Decrypt","kms:GenerateDataKey"]`))
		Expect(w.PutKeyPolicy("mrk-tenant", allowed)).To(Succeed())
		c, arn := client(), softkms.ARN(softkmstest.Region, "mrk-tenant")
		plaintext, ciphertext, err := c.GenerateDataKey(ctx, arn, tied)
		Expect(err).NotTo(HaveOccurred())
		Expect(plaintext).To(HaveLen(32))
		Expect(c.DecryptBy(ctx, arn, ciphertext, tied)).To(Equal(plaintext))
		Expect(w.Events()[0]).To(Equal(softkms.Event{
			Action: "kms:GenerateDataKey", Region: softkmstest.Region, Principal: w.Enclave.ARN, Key: arn, Context: tied, PCR0: w.PCRs[0].String(),
		}))

		Expect(w.PutKeyPolicy("mrk-tenant", policy(w, w.PCRs[0].String()))).To(Succeed())
		_, _, err = c.GenerateDataKey(ctx, arn, tied)
		Expect(err).To(MatchError(kms.ErrDenied))
	})

	It("ends with its context", func(ctx SpecContext) {
		ended, cancel := context.WithCancel(ctx)
		cancel()
		_, err := client().Decrypt(ended, []byte("x"), tied)
		Expect(err).To(MatchError(kms.ErrUnavailable))
	})

	It("serves calls that come together", func(ctx SpecContext) {
		want, ciphertext := dataKey()
		c := client()
		var calls sync.WaitGroup
		for range 12 {
			calls.Go(func() {
				defer GinkgoRecover()
				Expect(c.Decrypt(ctx, ciphertext, tied)).To(Equal(want))
			})
		}
		calls.Wait()
	})

	DescribeTable("needs", func(change func(*kms.Config)) {
		config := kms.Config{Region: softkmstest.Region, Dial: w.Dial, NSM: module}
		change(&config)
		_, err := kms.New(config)
		Expect(err).To(HaveOccurred())
	},
		Entry("a region", func(c *kms.Config) { c.Region = "" }),
		Entry("a way to dial", func(c *kms.Config) { c.Dial = nil }),
		Entry("a security module", func(c *kms.Config) { c.NSM = nil }),
	)
})

// answering dials a server with the KMS's name and the given answer.
func answering(w *softkmstest.World, status int, body string) func(context.Context) (net.Conn, error) {
	GinkgoHelper()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", w.ServerTLS())
	Expect(err).NotTo(HaveOccurred())
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		rw.Header().Set("Location", "https://example.com/")
		rw.WriteHeader(status)
		_, _ = io.WriteString(rw, body)
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	DeferCleanup(func() {
		Expect(server.Close()).To(Succeed())
		<-served
	})
	return func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", listener.Addr().String())
	}
}

var _ = Describe("An RSA key", func() {
	It("is nothing any more once it is wiped", func() {
		key := kms.TakeKey()
		Expect(key.Validate()).To(Succeed())
		secrets := kms.SecretsOf(key)
		Expect(secrets).To(HaveLen(6))
		kms.Wipe(key)
		for _, secret := range secrets {
			for _, word := range secret.Bits() {
				Expect(word).To(BeZero())
			}
		}
	})
})

func BenchmarkDecrypt(b *testing.B) {
	w := softkmstest.Start(b)
	if _, err := w.CreateKey("mrk-tenant", policy(w, w.PCRs[0].String())); err != nil {
		b.Fatal(err)
	}
	c, err := kms.New(kms.Config{Region: softkmstest.Region, Dial: w.Dial, NSM: w.Module, Roots: w.Roots})
	if err != nil {
		b.Fatal(err)
	}
	defer c.CloseIdleConnections()
	c.SetCredentials(credentialsOf(w.Enclave))
	_, blob, err := w.DataKey("mrk-tenant", nil)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := c.Decrypt(b.Context(), blob, nil); err != nil {
			b.Fatal(err)
		}
	}
}

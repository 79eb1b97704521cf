package kms_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
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

var _ = Describe("The signature", func() {
	DescribeTable("is the SDK's own, byte for byte",
		func(ctx SpecContext, token, body string) {
			now := time.Date(2026, 11, 26, 23, 59, 59, 0, time.UTC)
			ours, err := http.NewRequest(http.MethodPost, "https://kms.eu-west-3.amazonaws.com/", bytes.NewReader([]byte(body)))
			Expect(err).NotTo(HaveOccurred())
			kms.Sign(ours, []byte(body), kms.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", SessionToken: token}, "eu-west-3", now)

			theirs := ours.Clone(ctx)
			theirs.Header.Del("Authorization")
			theirs.ContentLength = 0 // which we do not sign: the body's hash says more
			sum := sha256.Sum256([]byte(body))
			Expect(v4.NewSigner().SignHTTP(ctx, aws.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", SessionToken: token},
				theirs, hex.EncodeToString(sum[:]), "kms", "eu-west-3", now)).To(Succeed())
			Expect(ours.Header).To(Equal(theirs.Header))
			Expect(ours.Header.Get("Authorization")).To(HavePrefix("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261126/eu-west-3/kms/aws4_request, "))
		},
		Entry("without a session token", "", `{"a":1}`),
		Entry("with one", "IQoJb3JpZ2luX2VjE//////////wEaCXVzLWVhc3QtMSJHMEUCIQ==", `{"a":1}`),
		Entry("of nothing", "", ``),
	)
})

var _ = Describe("Amazon's roots", func() {
	It("are the four that Amazon Trust Services publishes", func() {
		rest, err := os.ReadFile("amazon-roots.pem")
		Expect(err).NotTo(HaveOccurred())
		var found []string
		for block, more := pem.Decode(rest); block != nil; block, more = pem.Decode(more) {
			cert, err := x509.ParseCertificate(block.Bytes)
			Expect(err).NotTo(HaveOccurred())
			Expect(cert.IsCA).To(BeTrue())
			sum := sha256.Sum256(block.Bytes)
			found = append(found, cert.Subject.CommonName+" "+hex.EncodeToString(sum[:]))
		}
		// https://www.amazontrust.com/repository/
		Expect(found).To(ConsistOf(
			"Amazon Root CA 1 8ecde6884f3d87b1125ba31ac3fcb13d7016de7f57cc904fe1cb97c6ae98196e",
			"Amazon Root CA 2 1ba5b2aa8c65401a82960118f80bec4f62304d83cec4713a19c39c011ea46db4",
			"Amazon Root CA 3 18ce6cfe7bf14e60b2e347b8dfe868cb31d02ebb3ada271569f50343b46db3a4",
			"Amazon Root CA 4 e35d28419ed02025cfa69038cd623962458da5c695fbdea3c22b0bfb25897092",
		))
		Expect(kms.AmazonRoots()).NotTo(BeNil())
	})
})

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

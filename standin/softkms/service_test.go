package softkms_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/nsm"
	"github.com/mrgc/mrgc/standin/softkms"
	"github.com/mrgc/mrgc/standin/softnsm"
)

var _ = Describe("The service", func() {
	var w *world
	BeforeEach(func() {
		w = newWorld()
		for _, id := range []string{"mrk-key", "mrk-other", "single"} {
			_, err := w.service.CreateKey(id, statements(allow(nil, "kms:*")))
			Expect(err).NotTo(HaveOccurred())
		}
	})

	generate := func(ctx SpecContext, client *kms.Client, keyID string) (*kms.GenerateDataKeyOutput, error) {
		return client.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{
			KeyId: aws.String(keyID), KeySpec: types.DataKeySpecAes256, EncryptionContext: map[string]string{"a": "b"},
		})
	}
	made := func(ctx SpecContext, keyID string) *kms.GenerateDataKeyOutput {
		GinkgoHelper()
		out, err := generate(ctx, w.as(w.tenant, "us-east-1", nil), keyID)
		Expect(err).NotTo(HaveOccurred())
		return out
	}

	It("gives the SDK back what it made", func(ctx SpecContext) {
		key := made(ctx, "mrk-key")
		Expect(aws.ToString(key.KeyId)).To(Equal(softkms.ARN("us-east-1", "mrk-key")))
		out, err := w.as(w.tenant, "us-east-1", nil).Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: key.CiphertextBlob, EncryptionContext: map[string]string{"a": "b"}})
		Expect(err).NotTo(HaveOccurred())
		Expect(out.Plaintext).To(Equal(key.Plaintext))
		Expect(bytes.Contains(key.CiphertextBlob, key.Plaintext)).To(BeFalse())
	})

	It("moves a ciphertext to another key", func(ctx SpecContext) {
		key := made(ctx, "mrk-key")
		client := w.as(w.tenant, "us-east-1", nil)
		moved, err := client.ReEncrypt(ctx, &kms.ReEncryptInput{
			CiphertextBlob: key.CiphertextBlob, SourceEncryptionContext: map[string]string{"a": "b"}, DestinationKeyId: aws.String("mrk-other"),
		})
		Expect(err).NotTo(HaveOccurred())
		out, err := client.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: moved.CiphertextBlob, KeyId: aws.String("mrk-other")})
		Expect(err).NotTo(HaveOccurred())
		Expect(out.Plaintext).To(Equal(key.Plaintext))
	})

	DescribeTable("refuses a request that was changed on its way, or is not the principal's",
		func(ctx SpecContext, edit func(*http.Request), want string) {
			_, err := generate(ctx, w.as(w.tenant, "us-east-1", nil), "mrk-key")
			Expect(err).NotTo(HaveOccurred(), "without the change")
			_, err = generate(ctx, w.as(w.tenant, "us-east-1", edit), "mrk-key")
			Expect(code(err)).To(Equal(want))
		},
		Entry("its body", func(r *http.Request) { setBody(r, `{"KeyId":"mrk-other","KeySpec":"AES_256"}`) }, "InvalidSignatureException"),
		Entry("its target", func(r *http.Request) { r.Header.Set("X-Amz-Target", "TrentService.Encrypt") }, "InvalidSignatureException"),
		Entry("its date", func(r *http.Request) { shiftDate(r, time.Second) }, "InvalidSignatureException"),
		Entry("its host", func(r *http.Request) { r.Host = "kms.us-west-2.amazonaws.com" }, "InvalidSignatureException"),
		Entry("its region", func(r *http.Request) { editAuthorization(r, "/us-east-1/", "/us-west-2/") }, "InvalidSignatureException"),
		Entry("a header that is not signed", func(r *http.Request) { r.Header.Set("X-Amz-Extra", "1") }, "InvalidSignatureException"),
		Entry("its list of signed headers", func(r *http.Request) { editAuthorization(r, ";x-amz-target", "") }, "InvalidSignatureException"),
		Entry("the host left out of it", func(r *http.Request) { editAuthorization(r, ";host", "") }, "InvalidSignatureException"),
		Entry("no signature", func(r *http.Request) { r.Header.Del("Authorization") }, "MissingAuthenticationTokenException"),
		Entry("another kind of signature", func(r *http.Request) { r.Header.Set("Authorization", "Bearer x") }, "IncompleteSignatureException"),
		Entry("a signature for another service", func(r *http.Request) { editAuthorization(r, "/kms/", "/s3/") }, "IncompleteSignatureException"),
		Entry("a session token that is not the principal's", func(r *http.Request) { r.Header.Set("X-Amz-Security-Token", "x") }, "UnrecognizedClientException"),
		Entry("an access key that nobody has", func(r *http.Request) { editAuthorization(r, "Credential=AKIA", "Credential=AKIB") }, "UnrecognizedClientException"),
		Entry("another path", func(r *http.Request) { r.URL.Path = "/x" }, "UnknownOperationException"),
	)

	It("refuses a principal who has another secret", func(ctx SpecContext) {
		forged := w.tenant
		forged.Credentials.SecretAccessKey = w.nobody.Credentials.SecretAccessKey
		_, err := generate(ctx, w.as(forged, "us-east-1", nil), "mrk-key")
		Expect(code(err)).To(Equal("InvalidSignatureException"))
		_, err = generate(ctx, w.as(w.tenant, "us-east-1", nil), "mrk-key")
		Expect(err).NotTo(HaveOccurred())
	})

	It("takes temporary credentials with their token, and not without", func(ctx SpecContext) {
		temporary := softkms.NewPrincipal("arn:aws:sts::111122223333:assumed-role/tenant/session")
		temporary.Credentials.SessionToken = "token"
		w.service.AddPrincipal(temporary)
		_, err := generate(ctx, w.as(temporary, "us-east-1", nil), "mrk-key")
		Expect(err).NotTo(HaveOccurred())
		temporary.Credentials.SessionToken = ""
		_, err = generate(ctx, w.as(temporary, "us-east-1", nil), "mrk-key")
		Expect(code(err)).To(Equal("UnrecognizedClientException"))
	})

	It("refuses a request that is older or newer than five minutes", func(ctx SpecContext) {
		for skew, want := range map[time.Duration]string{
			-6 * time.Minute: "InvalidSignatureException", 6 * time.Minute: "InvalidSignatureException", 4 * time.Minute: "",
		} {
			w.mu.Lock()
			w.now = time.Now().Add(skew)
			w.mu.Unlock()
			_, err := generate(ctx, w.as(w.tenant, "us-east-1", nil), "mrk-key")
			Expect(code(err)).To(Equal(want), "%s", skew)
		}
	})

	DescribeTable("refuses a Recipient",
		func(ctx SpecContext, edit func(SpecContext, *world, *types.RecipientInfo), reason string) {
			blob := made(ctx, "mrk-key").CiphertextBlob
			decrypt := func(r *types.RecipientInfo) error {
				_, err := w.as(w.tenant, "us-east-1", nil).Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, EncryptionContext: map[string]string{"a": "b"}, Recipient: r})
				return err
			}
			r := recipient(w.document(ctx))
			Expect(decrypt(r)).To(Succeed(), "as it is")
			edit(ctx, w, r)
			err := decrypt(r)
			Expect(code(err)).To(Equal("ValidationException"))
			Expect(err).To(MatchError(ContainSubstring(reason)))
		},
		Entry("whose document was changed", func(_ SpecContext, _ *world, r *types.RecipientInfo) {
			r.AttestationDocument[len(r.AttestationDocument)-1] ^= 1
		}, "signature does not verify"),
		Entry("whose document is under another root", func(ctx SpecContext, w *world, r *types.RecipientInfo) {
			root, err := softnsm.NewRoot(time.Now())
			Expect(err).NotTo(HaveOccurred())
			r.AttestationDocument = w.documentOf(ctx, serveModule(root, time.Now))
		}, "not one that the policy pins"),
		Entry("whose document is old", func(ctx SpecContext, w *world, r *types.RecipientInfo) {
			r.AttestationDocument = w.documentOf(ctx, serveModule(w.root, func() time.Time { return time.Now().Add(-6 * time.Minute) }))
		}, "old, more than 5m0s"),
		Entry("whose document is not signed", func(_ SpecContext, _ *world, r *types.RecipientInfo) {
			r.AttestationDocument = attestVector("qemu-unsigned-attestation.cbor")
		}, "protected header"),
		Entry("whose document is none", func(_ SpecContext, _ *world, r *types.RecipientInfo) { r.AttestationDocument = []byte("x") }, "cannot be read"),
		Entry("without a public key", func(ctx SpecContext, w *world, r *types.RecipientInfo) {
			r.AttestationDocument = attestKey(ctx, w, nil)
		}, "no public key"),
		Entry("with a key that is not RSA", func(ctx SpecContext, w *world, r *types.RecipientInfo) {
			key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
			Expect(err).NotTo(HaveOccurred())
			public, err := x509.MarshalPKIXPublicKey(key.Public())
			Expect(err).NotTo(HaveOccurred())
			r.AttestationDocument = attestKey(ctx, w, public)
		}, "not RSA"),
		Entry("with another algorithm", func(_ SpecContext, _ *world, r *types.RecipientInfo) { r.KeyEncryptionAlgorithm = "RSAES_OAEP_SHA_1" }, "want RSAES_OAEP_SHA_256"),
	)

	It("verifies AWS's own documents at their own time, and refuses the one of debug mode", func() {
		at := func(ms int64) *softkms.Service {
			service, err := softkms.New(softkms.Config{
				Regions: []string{"us-east-1"}, Roots: []*x509.Certificate{attest.AWSRoot()}, Now: func() time.Time { return time.UnixMilli(ms) },
			})
			Expect(err).NotTo(HaveOccurred())
			return service
		}
		real, debug := attestVector("aws-attestation-2023.cbor"), attestVector("aws-attestation-debug-2023.cbor")
		Expect(at(1665651482136).VerifyDocument(real)).To(MatchError(ContainSubstring("no public key")), "all else is in order")
		Expect(at(1665582606081).VerifyDocument(debug)).To(MatchError(ContainSubstring("PCR0 is all zero")))
	})

	DescribeTable("refuses to decrypt",
		func(ctx SpecContext, edit func(*world, *kms.DecryptInput), want string) {
			in := &kms.DecryptInput{CiphertextBlob: made(ctx, "mrk-key").CiphertextBlob, EncryptionContext: map[string]string{"a": "b"}, KeyId: aws.String("mrk-key")}
			client := w.as(w.tenant, "us-east-1", nil)
			_, err := client.Decrypt(ctx, in)
			Expect(err).NotTo(HaveOccurred(), "as it is")
			edit(w, in)
			_, err = client.Decrypt(ctx, in)
			Expect(code(err)).To(Equal(want))
		},
		Entry("for another context", func(_ *world, in *kms.DecryptInput) { in.EncryptionContext["a"] = "c" }, "InvalidCiphertextException"),
		Entry("for a larger context", func(_ *world, in *kms.DecryptInput) { in.EncryptionContext["c"] = "d" }, "InvalidCiphertextException"),
		Entry("for no context", func(_ *world, in *kms.DecryptInput) { in.EncryptionContext = nil }, "InvalidCiphertextException"),
		Entry("a changed blob", func(_ *world, in *kms.DecryptInput) { in.CiphertextBlob[len(in.CiphertextBlob)-1] ^= 1 }, "InvalidCiphertextException"),
		Entry("what is no blob", func(_ *world, in *kms.DecryptInput) { in.CiphertextBlob = []byte("x") }, "InvalidCiphertextException"),
		Entry("with another key", func(_ *world, in *kms.DecryptInput) { in.KeyId = aws.String("mrk-other") }, "IncorrectKeyException"),
		Entry("with a key that is not there", func(_ *world, in *kms.DecryptInput) { in.KeyId = aws.String("mrk-none") }, "NotFoundException"),
		Entry("with a key of another region", func(_ *world, in *kms.DecryptInput) { in.KeyId = aws.String(softkms.ARN("us-west-2", "mrk-key")) }, "NotFoundException"),
		Entry("with a key that is disabled", func(w *world, _ *kms.DecryptInput) { Expect(w.service.SetEnabled("mrk-key", false)).To(Succeed()) }, "DisabledException"),
		Entry("by another algorithm", func(_ *world, in *kms.DecryptInput) {
			in.EncryptionAlgorithm = types.EncryptionAlgorithmSpecRsaesOaepSha256
		}, "InvalidKeyUsageException"),
		Entry("with grants, which it does not know", func(_ *world, in *kms.DecryptInput) { in.GrantTokens = []string{"x"} }, "ValidationException"),
	)

	It("knows a key that is not multi-region in its own region only", func(ctx SpecContext) {
		_, err := generate(ctx, w.as(w.tenant, "us-east-1", nil), "single")
		Expect(err).NotTo(HaveOccurred())
		_, err = generate(ctx, w.as(w.tenant, "us-west-2", nil), "single")
		Expect(code(err)).To(Equal("NotFoundException"))
		_, err = generate(ctx, w.as(w.tenant, "us-west-2", nil), "mrk-key")
		Expect(err).NotTo(HaveOccurred())
	})
})

func attestKey(ctx SpecContext, w *world, public []byte) []byte {
	GinkgoHelper()
	document, err := w.module.Attest(ctx, nsm.Request{PublicKey: public})
	Expect(err).NotTo(HaveOccurred())
	return document
}

func attestVector(name string) []byte {
	GinkgoHelper()
	b, err := os.ReadFile(filepath.Join("..", "..", "internal", "attest", "testdata", name))
	Expect(err).NotTo(HaveOccurred())
	return b
}

func setBody(r *http.Request, body string) {
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
}

func shiftDate(r *http.Request, by time.Duration) {
	const form = "20060102T150405Z"
	at, err := time.Parse(form, r.Header.Get("X-Amz-Date"))
	Expect(err).NotTo(HaveOccurred())
	r.Header.Set("X-Amz-Date", at.Add(by).Format(form))
}

func editAuthorization(r *http.Request, from, to string) {
	before := r.Header.Get("Authorization")
	Expect(before).To(ContainSubstring(from))
	r.Header.Set("Authorization", strings.Replace(before, from, to, 1))
}

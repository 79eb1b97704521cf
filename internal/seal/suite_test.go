package seal_test

import (
	"bytes"
	"crypto/rand"
	"io"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/seal"
)

func TestSeal(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "seal")
}

// now is when every test takes place.
func now() time.Time { return time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC) }

func testClaims() seal.Claims {
	return seal.Claims{
		Model:          "qwen2.5-0.5b-instruct",
		ManifestSHA256: [32]byte{1, 2, 3},
		Region:         "use1",
		Mode:           seal.ModeProcess,
		NotBefore:      now().Add(-time.Hour),
		NotAfter:       now().Add(time.Hour),
	}
}

func newKey() *seal.RecipientKey {
	GinkgoHelper()
	key, err := seal.NewRecipientKey(testClaims())
	Expect(err).NotTo(HaveOccurred())
	return key
}

func newKeys(n int) []*seal.RecipientKey {
	GinkgoHelper()
	keys := make([]*seal.RecipientKey, n)
	for i := range keys {
		keys[i] = newKey()
	}
	return keys
}

func recipients(keys ...*seal.RecipientKey) []*seal.Recipient {
	out := make([]*seal.Recipient, len(keys))
	for i, key := range keys {
		out[i] = key.Recipient
	}
	return out
}

func testRequest() seal.Request {
	return seal.Request{
		Operation: seal.OpChatCompletions,
		Model:     testClaims().Model,
		Tenant:    "acme",
		Affinity:  "conversation-7",
		Size:      "512/256",
		RequestID: seal.RequestID{0xaa, 1, 2, 3},
		Expiry:    now().Add(time.Minute),
		Payload: seal.Payload{
			Credential:  []byte("the credential"),
			CacheSecret: []byte("the cache secret"),
			Body:        []byte(`{"messages":[{"role":"user","content":"hello"}]}`),
		},
	}
}

func mustSeal(req seal.Request, keys ...*seal.RecipientKey) *seal.Sealed {
	GinkgoHelper()
	sealed, err := seal.Seal(rand.Reader, req, recipients(keys...))
	Expect(err).NotTo(HaveOccurred())
	return sealed
}

// open does what an enclave does with a body and its headers.
func open(key *seal.RecipientKey, h seal.Headers, body []byte) (*seal.Opened, error) {
	return openLimited(key, h, body, now(), seal.Limits{})
}

func openLimited(key *seal.RecipientKey, h seal.Headers, body []byte, at time.Time, limits seal.Limits) (*seal.Opened, error) {
	return openWith(nil, key, h, body, at, limits)
}

func openWith(decrypt seal.DecryptDataKey, key *seal.RecipientKey, h seal.Headers, body []byte, at time.Time, limits seal.Limits) (*seal.Opened, error) {
	r := bytes.NewReader(body)
	p, err := seal.ReadPrologue(r)
	if err != nil {
		return nil, err
	}
	return key.OpenWith(decrypt, at, p, h, r, limits)
}

func mustOpen(key *seal.RecipientKey, sealed *seal.Sealed) *seal.Opened {
	GinkgoHelper()
	opened, err := open(key, sealed.Headers, sealed.Body)
	Expect(err).NotTo(HaveOccurred())
	return opened
}

// exchange gives a sealed request and the writer of its answer into wire.
func exchange() (*seal.Sealed, *seal.ResponseWriter, *bytes.Buffer) {
	GinkgoHelper()
	key := newKey()
	sealed := mustSeal(testRequest(), key)
	wire := &bytes.Buffer{}
	w, err := mustOpen(key, sealed).Respond(rand.Reader, wire)
	Expect(err).NotTo(HaveOccurred())
	return sealed, w, wire
}

func okHead() seal.Head {
	return seal.Head{Status: 200, ContentType: "text/event-stream"}
}

func okEnd() seal.End { return seal.End{PromptTokens: 12, OutputTokens: 34} }

// answer gives a complete answer with the data in one chunk per element.
func answer(data ...string) (*seal.Sealed, []byte) {
	GinkgoHelper()
	sealed, w, wire := exchange()
	Expect(w.WriteHead(okHead())).To(Succeed())
	for _, d := range data {
		_, err := w.Write([]byte(d))
		Expect(err).NotTo(HaveOccurred())
	}
	Expect(w.Close(okEnd())).To(Succeed())
	return sealed, wire.Bytes()
}

func readAnswer(sealed *seal.Sealed, wire []byte) ([]byte, error) {
	return io.ReadAll(sealed.OpenResponse(bytes.NewReader(wire)))
}

// flipped is b with one bit inverted.
func flipped(b []byte, bit int) []byte {
	c := bytes.Clone(b)
	c[bit/8] ^= 1 << (bit % 8)
	return c
}

package seal_test

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/seal"
)

// The vectors are for other implementations, and they hold this one to its own
// past: a change that no longer opens them is a new version of the protocol.
var update = flag.Bool("update", false, "write testdata/vectors.json anew") //nolint:gochecknoglobals // a flag

// hexBytes are bytes that JSON shows in hex.
type hexBytes []byte

func (h hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

type vector struct {
	Comment    string            `json:"comment"`
	Recipients []vectorRecipient `json:"recipients"`
	Request    vectorRequest     `json:"request"`
	Responses  []vectorResponse  `json:"responses"`
}

type vectorRecipient struct {
	PrivateKey hexBytes `json:"private_key"` // X-Wing seed, RFC 9180 SerializePrivateKey
	Claims     hexBytes `json:"claims"`
	KeyID      string   `json:"key_id"`
}

type vectorRequest struct {
	Operation   uint8    `json:"operation"`
	Model       string   `json:"model"`
	Tenant      string   `json:"tenant"`
	Affinity    string   `json:"affinity"`
	Size        string   `json:"size"`
	RequestID   string   `json:"request_id"`
	Recipients  string   `json:"recipients"`
	Expiry      int64    `json:"expiry"`
	Credential  hexBytes `json:"credential"`
	CacheSecret hexBytes `json:"cache_secret"`
	Body        hexBytes `json:"body"`
	// DataKey is set when the recipients are of type kms: KMS's answer to
	// GenerateDataKey, and the context that it was asked with.
	DataKey    *vectorDataKey `json:"data_key,omitempty"`
	DEK        hexBytes       `json:"dek"`
	Transcript hexBytes       `json:"transcript"` // H
	Commitment hexBytes       `json:"commitment"`
	Plaintext  hexBytes       `json:"plaintext"`
	Sealed     hexBytes       `json:"sealed"`
}

type vectorDataKey struct {
	Plaintext  hexBytes          `json:"plaintext"`
	Ciphertext hexBytes          `json:"ciphertext"`
	Context    map[string]string `json:"context"`
}

// decrypt is KMS's part.
func (d *vectorDataKey) decrypt(ciphertext []byte, context map[string]string) ([]byte, error) {
	if d == nil || !bytes.Equal(ciphertext, d.Ciphertext) || !maps.Equal(context, d.Context) {
		return nil, errors.New("not the data key of this vector")
	}
	return bytes.Clone(d.Plaintext), nil
}

type vectorResponse struct {
	By            int        `json:"by"` // index of the recipient that answers
	ResponseNonce hexBytes   `json:"response_nonce"`
	Status        int        `json:"status"`
	ContentType   string     `json:"content_type"`
	RetryAfter    int        `json:"retry_after"`
	Data          []hexBytes `json:"data"` // one element per write
	PromptTokens  int        `json:"prompt_tokens"`
	OutputTokens  int        `json:"output_tokens"`
	Receipt       hexBytes   `json:"receipt"`
	Error         hexBytes   `json:"error"` // in place of an end, when not empty
	Sealed        hexBytes   `json:"sealed"`
}

func (r vectorRequest) headers() (seal.Headers, error) {
	id, err := seal.ParseRequestID(r.RequestID)
	if err != nil {
		return seal.Headers{}, err
	}
	ids, err := seal.ParseKeyIDs(r.Recipients)
	return seal.Headers{
		Model: r.Model, Tenant: r.Tenant, Affinity: r.Affinity, Size: r.Size, RequestID: id, KeyIDs: ids,
	}, err
}

func (r vectorRequest) payload() seal.Payload {
	return seal.Payload{Credential: r.Credential, CacheSecret: r.CacheSecret, Body: r.Body}
}

func (r vectorRecipient) key() (*seal.RecipientKey, error) {
	claims, err := seal.ParseClaims(r.Claims)
	if err != nil {
		return nil, err
	}
	return seal.RecipientKeyFromPrivate(r.PrivateKey, claims)
}

// write answers as the vector says and gives the bytes.
func (r vectorResponse) write(opened *seal.Opened) ([]byte, error) {
	wire := &bytes.Buffer{}
	w, err := opened.Respond(bytes.NewReader(r.ResponseNonce), wire)
	if err != nil {
		return nil, err
	}
	head := seal.Head{Status: r.Status, ContentType: r.ContentType, RetryAfter: time.Duration(r.RetryAfter) * time.Second}
	if err := w.WriteHead(head); err != nil {
		return nil, err
	}
	for _, data := range r.Data {
		if _, err := w.Write(data); err != nil {
			return nil, err
		}
	}
	if len(r.Error) > 0 {
		err = w.Fail(r.Error)
	} else {
		err = w.Close(seal.End{PromptTokens: r.PromptTokens, OutputTokens: r.OutputTokens, Receipt: r.Receipt})
	}
	return wire.Bytes(), err
}

func loadVectors() ([]vector, error) {
	raw, err := os.ReadFile(filepath.Join("testdata", "vectors.json"))
	if err != nil {
		return nil, err
	}
	var vectors []vector
	return vectors, json.Unmarshal(raw, &vectors)
}

var _ = Describe("The test vectors", func() {
	It("are opened, and their responses written, byte by byte", func() {
		if *update {
			Expect(writeVectors()).To(Succeed())
		}
		vectors, err := loadVectors()
		Expect(err).NotTo(HaveOccurred())
		Expect(vectors).NotTo(BeEmpty())
		for _, v := range vectors {
			By(v.Comment)
			expectVector(v)
		}
	})
})

func expectVector(v vector) {
	GinkgoHelper()
	headers, err := v.Request.headers()
	Expect(err).NotTo(HaveOccurred())
	opened := make([]*seal.Opened, len(v.Recipients))
	for i, recipient := range v.Recipients {
		key, err := recipient.key()
		Expect(err).NotTo(HaveOccurred())
		Expect(key.RawClaims()).To(BeEquivalentTo(recipient.Claims))
		Expect(key.KeyID().String()).To(Equal(recipient.KeyID))
		at := time.Unix(v.Request.Expiry-1, 0)
		opened[i], err = openWith(v.Request.DataKey.decrypt, key, headers, v.Request.Sealed, at, seal.Limits{})
		Expect(err).NotTo(HaveOccurred())
		Expect(opened[i].DEK()).To(BeEquivalentTo(v.Request.DEK))
		Expect(opened[i].Transcript()).To(BeEquivalentTo([32]byte(v.Request.Transcript)))
		Expect(opened[i].Commitment()).To(BeEquivalentTo(v.Request.Commitment))
		Expect(opened[i].Operation).To(BeEquivalentTo(v.Request.Operation))
		Expect(bytes.Equal(opened[i].Plaintext(), v.Request.Plaintext)).To(BeTrue())
		Expect(opened[i].Payload).To(Equal(v.Request.payload()))
	}
	sealed := seal.ResumeSealed(v.Request.DEK, [32]byte(v.Request.Transcript), headers.KeyIDs)
	for _, response := range v.Responses {
		Expect(response.write(opened[response.By])).To(BeEquivalentTo(response.Sealed))
		r := sealed.OpenResponse(bytes.NewReader(response.Sealed))
		data, err := io.ReadAll(r)
		want := []byte{}
		for _, d := range response.Data {
			want = append(want, d...)
		}
		Expect(data).To(Equal(want))
		if len(response.Error) > 0 {
			var failed *seal.ResponseError
			Expect(errors.As(err, &failed)).To(BeTrue())
			Expect(failed.Body).To(BeEquivalentTo(response.Error))
			continue
		}
		Expect(err).NotTo(HaveOccurred())
		Expect(r.Head()).To(Equal(seal.Head{
			Status: response.Status, ContentType: response.ContentType,
			RetryAfter: time.Duration(response.RetryAfter) * time.Second,
		}))
		end, err := r.End()
		Expect(err).NotTo(HaveOccurred())
		Expect(end.PromptTokens).To(Equal(response.PromptTokens))
		Expect(end.OutputTokens).To(Equal(response.OutputTokens))
		Expect(bytes.Equal(end.Receipt, response.Receipt)).To(BeTrue())
	}
}

// writeVectors makes the vectors that are not in the file yet. Those that are
// stay: keys, DEK and encapsulations are random, and no two runs give the same.
func writeVectors() error {
	have, err := loadVectors()
	if err != nil {
		return err
	}
	small, err := makeVector("one recipient, one chunk", 1, vectorRequest{
		Operation: uint8(seal.OpChatCompletions), Model: testClaims().Model, Tenant: "acme",
		Affinity: "c0ffee", Size: "512/256", RequestID: "000102030405060708090a0b0c0d0e0f",
		Expiry:     now().Unix(),
		Credential: hexBytes("credential"), CacheSecret: hexBytes("cache secret"),
		Body: hexBytes(`{"model":"qwen2.5-0.5b-instruct","messages":[{"role":"user","content":"Say hello."}]}`),
	}, []vectorResponse{{
		ResponseNonce: bytes.Repeat([]byte{0x11}, 32), Status: 200, ContentType: "text/event-stream",
		Data:         []hexBytes{hexBytes("data: {\"n\":1}\n\n"), bytes.Repeat([]byte("x"), 600), hexBytes("data: [DONE]\n\n")},
		PromptTokens: 12, OutputTokens: 3,
	}, {
		ResponseNonce: bytes.Repeat([]byte{0x22}, 32), Status: 200, ContentType: "text/event-stream",
		Data:  []hexBytes{hexBytes("data: {\"n\":1}\n\n")},
		Error: hexBytes(`{"error":{"message":"the engine stopped","type":"server_error","param":null,"code":"engine_failed"}}`),
	}})
	if err != nil {
		return err
	}
	large, err := makeVector("three recipients, two chunks, no optional field", 3, vectorRequest{
		Operation: uint8(seal.OpCompletions), Model: testClaims().Model, Tenant: "acme",
		RequestID: "ffffffffffffffffffffffffffffffff", Expiry: now().Unix(),
		Credential: hexBytes{}, CacheSecret: hexBytes{}, Body: bytes.Repeat([]byte("0123456789abcdef"), 1050),
	}, []vectorResponse{{
		By: 2, ResponseNonce: bytes.Repeat([]byte{0x33}, 32), Status: 429, ContentType: "application/json", RetryAfter: 7,
		Data: []hexBytes{hexBytes(`{"error":{"message":"slow down","type":"rate_limit_error","param":null,"code":"rate_limited"}}`)},
	}, {
		By: 0, ResponseNonce: bytes.Repeat([]byte{0x44}, 32), Status: 200, ContentType: "application/json",
		Data: []hexBytes{hexBytes(`{}`)}, PromptTokens: 1, OutputTokens: 2, Receipt: hexBytes("a receipt"),
	}})
	if err != nil {
		return err
	}
	kms, err := makeVector("two recipients of type kms", 2, vectorRequest{
		Operation: uint8(seal.OpChatCompletions), Model: testClaims().Model, Tenant: "acme",
		Affinity: "c0ffee", Size: "64/1024", RequestID: "101112131415161718191a1b1c1d1e1f", Expiry: now().Unix(),
		Credential: hexBytes("credential"), CacheSecret: hexBytes("cache secret"), Body: hexBytes(`{"model":"qwen2.5-0.5b-instruct"}`),
		DataKey: &vectorDataKey{
			Plaintext: bytes.Repeat([]byte{0x4b}, 32), Ciphertext: bytes.Repeat([]byte("opaque but to KMS "), 11),
			Context: map[string]string{"mrgc:request-id": "101112131415161718191a1b1c1d1e1f", "mrgc:tenant": "acme"},
		},
	}, []vectorResponse{{
		By: 1, ResponseNonce: bytes.Repeat([]byte{0x55}, 32), Status: 200, ContentType: "application/json",
		Data: []hexBytes{hexBytes(`{}`)}, PromptTokens: 1, OutputTokens: 2,
	}})
	if err != nil {
		return err
	}
	for _, v := range []vector{small, large, kms} {
		if !slices.ContainsFunc(have, func(h vector) bool { return h.Comment == v.Comment }) {
			have = append(have, v)
		}
	}
	raw, err := json.MarshalIndent(have, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join("testdata", "vectors.json"), append(raw, '\n'), 0o644)
}

func makeVector(comment string, n int, req vectorRequest, responses []vectorResponse) (vector, error) {
	v := vector{Comment: comment, Request: req, Responses: responses}
	keys := make([]*seal.RecipientKey, n)
	ids := make([]seal.KeyID, n)
	for i := range keys {
		private := make([]byte, 32)
		if _, err := rand.Read(private); err != nil {
			return v, err
		}
		claims := testClaims()
		if i == 0 {
			claims.ReceiptKey = bytes.Repeat([]byte{0x5e}, 32)
		}
		var err error
		if keys[i], err = seal.RecipientKeyFromPrivate(private, claims); err != nil {
			return v, err
		}
		ids[i] = keys[i].KeyID()
		v.Recipients = append(v.Recipients, vectorRecipient{
			PrivateKey: private, Claims: keys[i].RawClaims(), KeyID: ids[i].String(),
		})
	}
	v.Request.Recipients = seal.FormatKeyIDs(ids)
	h, err := v.Request.headers()
	if err != nil {
		return v, err
	}
	request := seal.Request{
		Operation: seal.Operation(req.Operation), Model: req.Model, Tenant: req.Tenant, Affinity: req.Affinity,
		Size: req.Size, RequestID: h.RequestID, Expiry: time.Unix(req.Expiry, 0), Payload: req.payload(),
	}
	if d := req.DataKey; d != nil {
		request.DataKey = &seal.DataKey{Plaintext: d.Plaintext, Ciphertext: d.Ciphertext}
	}
	sealed, err := seal.Seal(rand.Reader, request, recipients(keys...))
	if err != nil {
		return v, err
	}
	v.Request.Sealed = sealed.Body
	for i := range v.Responses {
		opened, err := openWith(req.DataKey.decrypt, keys[responses[i].By], h, sealed.Body, time.Unix(req.Expiry-1, 0), seal.Limits{})
		if err != nil {
			return v, err
		}
		transcript := opened.Transcript()
		v.Request.DEK, v.Request.Transcript = opened.DEK(), transcript[:]
		v.Request.Commitment, v.Request.Plaintext = opened.Commitment(), opened.Plaintext()
		if v.Responses[i].Sealed, err = responses[i].write(opened); err != nil {
			return v, err
		}
	}
	return v, nil
}

// fixed gives the first vector: fuzz workers are processes of their own, and
// share no key that was made at a start.
func fixed(tb testing.TB) (vector, *seal.RecipientKey, seal.Headers) {
	tb.Helper()
	vectors, err := loadVectors()
	if err != nil {
		tb.Fatal(err)
	}
	key, err := vectors[0].Recipients[0].key()
	if err != nil {
		tb.Fatal(err)
	}
	h, err := vectors[0].Request.headers()
	if err != nil {
		tb.Fatal(err)
	}
	return vectors[0], key, h
}

package nsm_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/nsm"
)

// The bytes that the real module's Rust types encode to, put together by hand
// from their definition (serde's externally tagged enums).
const (
	wireRequest  = "a1" + "6b4174746573746174696f6e" + "a3" + "69757365725f64617461" + "4101" + "656e6f6e6365" + "4102" + "6a7075626c69635f6b6579" + "f6"
	wireResponse = "a1" + "6b4174746573746174696f6e" + "a1" + "68646f63756d656e74" + "43010203"
	wireError    = "a1" + "654572726f72" + "6d496e707574546f6f4c61726765"
)

var _ = Describe("The codec", func() {
	It("speaks the real module's encoding", func() {
		request, err := nsm.EncodeRequest(nsm.Request{UserData: []byte{1}, Nonce: []byte{2}})
		Expect(err).NotTo(HaveOccurred())
		Expect(hex.EncodeToString(request)).To(Equal(wireRequest))

		response, err := nsm.EncodeResponse([]byte{1, 2, 3})
		Expect(err).NotTo(HaveOccurred())
		Expect(hex.EncodeToString(response)).To(Equal(wireResponse))

		refusal, err := nsm.EncodeError(nsm.InputTooLarge)
		Expect(err).NotTo(HaveOccurred())
		Expect(hex.EncodeToString(refusal)).To(Equal(wireError))
	})

	It("decodes the requests that it encodes", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			field := func(name string, limit int) []byte {
				return rapid.SliceOfN(rapid.Byte(), 0, limit).Draw(t, name)
			}
			want := nsm.Request{
				UserData:  field("user_data", nsm.MaxUserData),
				Nonce:     field("nonce", nsm.MaxNonce),
				PublicKey: field("public_key", nsm.MaxPublicKey),
			}
			message, err := nsm.EncodeRequest(want)
			if err != nil {
				t.Fatal(err)
			}
			got, err := nsm.DecodeRequest(message)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("got %v, want %v", got, want)
			}
		})
	})

	It("returns the document or the module's refusal", func() {
		document, err := nsm.DecodeResponse(unhex(wireResponse))
		Expect(err).NotTo(HaveOccurred())
		Expect(document).To(Equal([]byte{1, 2, 3}))

		_, err = nsm.DecodeResponse(unhex(wireError))
		Expect(err).To(MatchError(nsm.InputTooLarge))
	})

	DescribeTable("refuses to encode a request with",
		func(r nsm.Request, reason string) {
			_, err := nsm.EncodeRequest(r)
			Expect(err).To(MatchError(nsm.InputTooLarge))
			Expect(err).To(MatchError(ContainSubstring(reason)))
		},
		Entry("large user data", nsm.Request{UserData: make([]byte, 513)}, "user_data of 513"),
		Entry("a large nonce", nsm.Request{Nonce: make([]byte, 513)}, "nonce of 513"),
		Entry("a large public key", nsm.Request{PublicKey: make([]byte, 1025)}, "public_key of 1025"),
	)

	DescribeTable("refuses a request that",
		func(message []byte, code nsm.ErrorCode) {
			_, err := nsm.DecodeRequest(message)
			Expect(err).To(MatchError(code))
		},
		Entry("is empty", nil, nsm.InvalidArgument),
		Entry("asks for something else", []byte("\x6bDescribeNSM"), nsm.InvalidArgument),
		Entry("is an empty map", unhex("a0"), nsm.InvalidArgument),
		Entry("asks for nothing", unhex("a16b4174746573746174696f6ef6"), nsm.InvalidArgument),
		Entry("has an unknown field", unhex("a1654f74686572a0"), nsm.InvalidArgument),
		Entry("has a field twice", unhex("a2"+wireRequest[2:]+wireRequest[2:]), nsm.InvalidArgument),
		Entry("has a trailing byte", unhex(wireRequest+"00"), nsm.InvalidArgument),
		Entry("has an indefinite length", unhex("bf"+wireRequest[2:]+"ff"), nsm.InvalidArgument),
		Entry("is too large", make([]byte, nsm.MaxRequest+1), nsm.InvalidArgument),
		Entry("has a large field", padded("a16b4174746573746174696f6ea1656e6f6e6365590201", 513), nsm.InputTooLarge),
	)

	DescribeTable("refuses a response that",
		func(message []byte, reason string) {
			_, err := nsm.DecodeResponse(message)
			Expect(err).To(MatchError(ContainSubstring(reason)))
		},
		Entry("is empty", nil, "EOF"),
		Entry("is an empty map", unhex("a0"), "no document"),
		Entry("has an empty document", unhex("a16b4174746573746174696f6ea168646f63756d656e7440"), "no document"),
		Entry("has a document and an error", unhex("a2"+wireResponse[2:]+wireError[2:]), "both"),
		Entry("has a trailing byte", unhex(wireResponse+"00"), "extraneous"),
		Entry("is too large", make([]byte, nsm.MaxResponse+1), "at most 12288"),
	)
})

var _ = Describe("A frame", func() {
	It("is the length, then the message", func() {
		var buf bytes.Buffer
		Expect(nsm.WriteFrame(&buf, []byte("abc"))).To(Succeed())
		Expect(buf.Bytes()).To(Equal([]byte{0, 0, 0, 3, 'a', 'b', 'c'}))
		message, err := nsm.ReadFrame(&buf, 3)
		Expect(err).NotTo(HaveOccurred())
		Expect(message).To(Equal([]byte("abc")))
	})

	DescribeTable("is refused when it",
		func(frame []byte, reason string) {
			_, err := nsm.ReadFrame(bytes.NewReader(frame), 3)
			Expect(err).To(MatchError(ContainSubstring(reason)))
		},
		Entry("is above the limit", []byte{0, 0, 0, 4, 'a', 'b', 'c', 'd'}, "message of 4 bytes"),
		Entry("claims to be huge", []byte{0xff, 0xff, 0xff, 0xff}, "message of 4294967295 bytes"),
		Entry("ends in the length", []byte{0, 0, 0}, "read message length"),
		Entry("ends in the message", []byte{0, 0, 0, 3, 'a'}, "read message: unexpected EOF"),
	)
})

// FuzzDecode checks that no message panics either side, that a request that is
// accepted can be sent on, and that refusals have one of the codes.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{wireRequest, wireResponse, wireError, "a0", "f6"} {
		f.Add(unhex(seed))
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		request, err := nsm.DecodeRequest(message)
		var code nsm.ErrorCode
		if err != nil && !errors.As(err, &code) {
			t.Fatalf("no code in %v", err)
		}
		if err == nil {
			if _, err := nsm.EncodeRequest(request); err != nil {
				t.Fatal(err)
			}
		}
		if document, err := nsm.DecodeResponse(message); (len(document) == 0) == (err == nil) {
			t.Fatalf("document %x and error %v", document, err)
		}
	})
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

// padded is a prefix in hex, then n zero bytes.
func padded(prefix string, n int) []byte { return append(unhex(prefix), make([]byte, n)...) }

package seal_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing/iotest"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/seal"
)

const (
	kindHead  = 1
	kindData  = 2
	kindEnd   = 3
	kindError = 4
)

var _ = Describe("A response", func() {
	It("arrives as it was written", func() {
		key := newKey()
		sealed := mustSeal(testRequest(), newKey(), key) // the second one answers
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			head := seal.Head{
				Status:      rapid.IntRange(200, 599).Draw(t, "status"),
				ContentType: rapid.StringMatching(`[ -~]{0,255}`).Draw(t, "content type"),
				RetryAfter:  time.Duration(rapid.IntRange(0, 86400).Draw(t, "retry after")) * time.Second,
			}
			end := seal.End{
				PromptTokens: rapid.IntRange(0, 1<<31-1).Draw(t, "prompt"),
				OutputTokens: rapid.IntRange(0, 1<<31-1).Draw(t, "output"),
			}
			if rapid.Bool().Draw(t, "with receipt") {
				end.Receipt = rapid.SliceOfN(rapid.Byte(), 1, 8192).Draw(t, "receipt")
			}
			wire, sent := &bytes.Buffer{}, &bytes.Buffer{}
			w, err := mustOpen(key, sealed).Respond(constant(7), wire)
			Expect(err).NotTo(HaveOccurred())
			Expect(w.WriteHead(head)).To(Succeed())
			for range rapid.IntRange(0, 5).Draw(t, "writes") {
				p := bytes.Repeat([]byte{'a', 'b', 'c'}, rapid.IntRange(0, 12000).Draw(t, "size"))
				Expect(w.Write(p)).To(Equal(len(p)))
				sent.Write(p)
			}
			Expect(w.Close(end)).To(Succeed())

			r := sealed.OpenResponse(wire)
			Expect(r.Head()).To(Equal(head))
			Expect(r.KeyID()).To(Equal(key.KeyID()))
			_, err = r.End()
			Expect(err).To(HaveOccurred(), "before the end has come")
			got, err := io.ReadAll(r)
			Expect(err).NotTo(HaveOccurred())
			Expect(bytes.Equal(got, sent.Bytes())).To(BeTrue())
			Expect(r.End()).To(Equal(end))
			Expect(r.Head()).To(Equal(head), "again, after the end")
		})
	})

	It("can be empty, and be read without asking for its head", func() {
		sealed, wire := answer()
		Expect(readAnswer(sealed, wire)).To(BeEmpty())
	})

	It("arrives however the transport splits it", func() {
		sealed, wire := answer("hello ", "world")
		r := sealed.OpenResponse(iotest.DataErrReader(iotest.OneByteReader(bytes.NewReader(wire))))
		Expect(io.ReadAll(iotest.OneByteReader(r))).To(BeEquivalentTo("hello world"))
	})

	It("gives each write to the transport at once, padded to its bucket", func() {
		_, w, wire := exchange()
		const overhead = 3 + 16
		Expect(w.Write(nil)).Error().To(HaveOccurred(), "no head yet")
		Expect(wire.Len()).To(BeZero())
		Expect(w.WriteHead(okHead())).To(Succeed())
		Expect(wire.Len()).To(Equal(seal.ResponsePrologueSize + 512 + overhead))
		for _, c := range []struct{ n, wire int }{
			{0, 0},
			{1, 512 + overhead},
			{509, 512 + overhead},
			{510, 2048 + overhead},
			{2045, 2048 + overhead},
			{2046, 8192 + overhead},
			{8189, 8192 + overhead},
			{8190, 16384 + overhead},
			{16381, 16384 + overhead},
			{16382, 16384 + overhead + 512 + overhead},
		} {
			wire.Reset()
			Expect(w.Write(make([]byte, c.n))).To(Equal(c.n))
			Expect(wire.Len()).To(Equal(c.wire), "%d bytes", c.n)
		}
	})

	It("is cut into frames of its writer's choice, in one write, and says no more for it", func() {
		sealed, w, wire := exchange()
		Expect(w.WriteFrames([]byte("x"), []int{509})).NotTo(Succeed(), "no head yet")
		Expect(w.WriteHead(okHead())).To(Succeed())
		head := wire.Len()
		Expect(w.WriteFrames(nil, nil)).To(Succeed())
		Expect(w.WriteFrames(make([]byte, 510), []int{509})).NotTo(Succeed(), "more than fits")
		Expect(w.WriteFrames([]byte("x"), []int{510})).NotTo(Succeed(), "no such frame")
		Expect(wire.Len()).To(Equal(head))
		text := bytes.Repeat([]byte("0123456789"), 256) // 2560 bytes: the third frame is not full, the last has nothing
		Expect(w.WriteFrames(text, []int{2045, 509, 509, 509})).To(Succeed())
		Expect(wire.Len() - head).To(Equal(2048 + 3*512 + 4*(3+16)))
		Expect(w.Close(okEnd())).To(Succeed())
		Expect(readAnswer(sealed, wire.Bytes())).To(Equal(text))
	})

	It("gives data as soon as its chunk is complete", func() {
		sealed, w, wire := exchange()
		r := sealed.OpenResponse(wire)
		Expect(w.WriteHead(okHead())).To(Succeed())
		Expect(r.Head()).To(Equal(okHead()))
		buf := make([]byte, 100)
		for _, token := range []string{"one", "two", "three"} {
			_, err := w.Write([]byte(token))
			Expect(err).NotTo(HaveOccurred())
			n, err := r.Read(buf)
			Expect(err).NotTo(HaveOccurred())
			Expect(string(buf[:n])).To(Equal(token))
			Expect(wire.Len()).To(BeZero())
		}
	})

	It("can be opened anew for another attempt", func() {
		keys := newKeys(2)
		sealed := mustSeal(testRequest(), keys...)
		for i, key := range keys {
			wire := &bytes.Buffer{}
			w, err := mustOpen(key, sealed).Respond(constant(9), wire)
			Expect(err).NotTo(HaveOccurred())
			Expect(w.WriteHead(okHead())).To(Succeed())
			_, err = fmt.Fprintf(w, "answer %d", i)
			Expect(err).NotTo(HaveOccurred())
			Expect(w.Close(okEnd())).To(Succeed())
			Expect(readAnswer(sealed, wire.Bytes())).To(BeEquivalentTo(fmt.Sprintf("answer %d", i)))
		}
	})

	It("is never a short answer when it is cut", func() {
		sealed, wire := answer("hello ", "world")
		broken := errors.New("connection reset")
		for n := range wire {
			got, err := readAnswer(sealed, wire[:n])
			Expect(err).To(MatchError(seal.ErrCut), "%d bytes", n)
			Expect("hello world").To(HavePrefix(string(got)))

			_, err = io.ReadAll(sealed.OpenResponse(io.MultiReader(bytes.NewReader(wire[:n]), iotest.ErrReader(broken))))
			Expect(err).To(And(MatchError(seal.ErrCut), MatchError(broken)), "%d bytes", n)
		}
		// All is there, but the transport does not say that it ended well.
		for _, err := range []error{broken, io.ErrUnexpectedEOF, fmt.Errorf("stream reset: %w", io.EOF)} {
			r := sealed.OpenResponse(io.MultiReader(bytes.NewReader(wire), iotest.ErrReader(err)))
			_, err := io.ReadAll(r)
			Expect(err).To(MatchError(seal.ErrCut))
			Expect(r.End()).Error().To(MatchError(seal.ErrCut))
		}
	})

	It("without a head gives the same error for all that is asked", func() {
		sealed, wire := answer("hello")
		r := sealed.OpenResponse(bytes.NewReader(wire[:seal.ResponsePrologueSize+10]))
		Expect(r.Head()).Error().To(MatchError(seal.ErrCut))
		Expect(r.Read(make([]byte, 1))).Error().To(MatchError(seal.ErrCut))
		Expect(r.End()).Error().To(MatchError(seal.ErrCut))
	})

	It("is an error when any bit of it differs", func() {
		sealed, wire := answer("hello ", "world")
		for i := range wire {
			for bit := range 8 {
				got, err := readAnswer(sealed, flipped(wire, 8*i+bit))
				Expect(err).To(HaveOccurred(), "byte %d bit %d", i, bit)
				Expect("hello world").To(HavePrefix(string(got)))
			}
		}
	})

	It("is an error when chunks are swapped, dropped, repeated or added", func() {
		sealed, wire := answer("one", "two")
		const chunk = 512 + 3 + 16
		start := seal.ResponsePrologueSize + chunk
		head, one, two, end := wire[:start], wire[start:start+chunk], wire[start+chunk:start+2*chunk], wire[start+2*chunk:]
		join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
		Expect(readAnswer(sealed, join(head, one, two, end))).To(BeEquivalentTo("onetwo"))
		for _, tampered := range [][]byte{
			join(head, two, one, end),
			join(head, one, end),
			join(head, end),
			join(head, one, one, two, end),
			join(head, one, two, two, end),
			join(head, one, two, end, end),
			join(head, one, two, end, []byte{0}),
			join(head, head, one, two, end),
		} {
			_, err := readAnswer(sealed, tampered)
			Expect(err).To(Or(MatchError(seal.ErrOpen), MatchError(seal.ErrMalformed)))
		}
	})

	It("does not open for another request, or as another recipient's", func() {
		keys := newKeys(2)
		sealed := mustSeal(testRequest(), keys...)
		wire := &bytes.Buffer{}
		w, err := mustOpen(keys[0], sealed).Respond(constant(1), wire)
		Expect(err).NotTo(HaveOccurred())
		Expect(w.WriteHead(okHead())).To(Succeed())
		Expect(w.Close(okEnd())).To(Succeed())

		_, err = readAnswer(mustSeal(testRequest(), keys...), wire.Bytes())
		Expect(err).To(MatchError(seal.ErrOpen))

		renamed := bytes.Clone(wire.Bytes())
		id := keys[1].KeyID()
		copy(renamed[1:], id[:])
		_, err = readAnswer(sealed, renamed)
		Expect(err).To(MatchError(seal.ErrOpen))

		stranger := newKey().KeyID()
		copy(renamed[1:], stranger[:])
		_, err = readAnswer(sealed, renamed)
		Expect(err).To(MatchError(seal.ErrMalformed))
	})

	It("that fails midway is an error with the enclave's JSON", func() {
		sealed, w, wire := exchange()
		const failure = `{"error":{"message":"the engine died","type":"server_error","param":null,"code":"engine_failed"}}`
		Expect(w.WriteHead(okHead())).To(Succeed())
		_, err := w.Write([]byte("half an ans"))
		Expect(err).NotTo(HaveOccurred())
		Expect(w.Fail([]byte(failure))).To(Succeed())

		r := sealed.OpenResponse(wire)
		got, err := io.ReadAll(r)
		Expect(string(got)).To(Equal("half an ans"))
		var failed *seal.ResponseError
		Expect(errors.As(err, &failed)).To(BeTrue())
		Expect(string(failed.Body)).To(Equal(failure))
		Expect(failed.Error()).NotTo(ContainSubstring("engine"))
		Expect(r.End()).Error().To(MatchError(err), "and there is no end")
		_, again := r.Read(make([]byte, 1))
		Expect(again).To(MatchError(err))
	})

	It("that the enclave abandons is cut", func() {
		sealed, w, wire := exchange()
		Expect(w.WriteHead(okHead())).To(Succeed())
		_, err := w.Write([]byte("half"))
		Expect(err).NotTo(HaveOccurred())
		w.Wipe()
		got, err := readAnswer(sealed, wire.Bytes())
		Expect(string(got)).To(Equal("half"))
		Expect(err).To(MatchError(seal.ErrCut))
	})

	It("cannot be written out of order", func() {
		_, w, wire := exchange()
		Expect(w.Fail([]byte(`{}`))).NotTo(Succeed())
		Expect(w.Close(okEnd())).NotTo(Succeed())
		Expect(wire.Len()).To(BeZero())
		Expect(w.WriteHead(okHead())).To(Succeed())
		Expect(w.WriteHead(okHead())).NotTo(Succeed())
		Expect(w.Close(okEnd())).To(Succeed())
		size := wire.Len()
		Expect(w.WriteHead(okHead())).NotTo(Succeed())
		Expect(w.Write([]byte("x"))).Error().To(HaveOccurred())
		Expect(w.Fail([]byte(`{}`))).NotTo(Succeed())
		Expect(w.Close(okEnd())).NotTo(Succeed())
		Expect(wire.Len()).To(Equal(size))
	})

	It("stays failed when the transport has failed", func() {
		key := newKey()
		broken := errors.New("broken pipe")
		w, err := mustOpen(key, mustSeal(testRequest(), key)).Respond(constant(1), &failAfter{n: 1, err: broken})
		Expect(err).NotTo(HaveOccurred())
		Expect(w.WriteHead(okHead())).To(Succeed())
		Expect(w.Write(make([]byte, 40000))).Error().To(MatchError(broken))
		Expect(w.Write([]byte("x"))).Error().To(MatchError(broken))
		Expect(w.Close(okEnd())).To(MatchError(broken))
	})

	It("needs randomness", func() {
		key := newKey()
		_, err := mustOpen(key, mustSeal(testRequest(), key)).Respond(iotest.ErrReader(errors.New("no entropy")), io.Discard)
		Expect(err).To(MatchError(ContainSubstring("no entropy")))
	})

	DescribeTable("refuses a head", func(h seal.Head) {
		_, w, wire := exchange()
		Expect(w.WriteHead(h)).To(MatchError(seal.ErrMalformed))
		Expect(wire.Len()).To(BeZero())
		Expect(w.WriteHead(okHead())).To(Succeed(), "a better one can follow")
	},
		Entry("with an interim status", seal.Head{Status: 100}),
		Entry("with status 600", seal.Head{Status: 600}),
		Entry("with a status beyond 16 bits", seal.Head{Status: 1<<16 + 200}),
		Entry("with a negative status", seal.Head{Status: -1}),
		Entry("that would inject a header", seal.Head{Status: 200, ContentType: "a\r\nb: c"}),
		Entry("with a long content type", seal.Head{Status: 200, ContentType: strings.Repeat("x", 256)}),
		Entry("with a negative delay", seal.Head{Status: 200, RetryAfter: -1}),
		Entry("with a delay over a day", seal.Head{Status: 200, RetryAfter: 25 * time.Hour}),
	)

	It("rounds the delay before a retry up", func() {
		sealed, w, wire := exchange()
		Expect(w.WriteHead(seal.Head{Status: 503, RetryAfter: time.Second + 1})).To(Succeed())
		head, err := sealed.OpenResponse(wire).Head()
		Expect(err).NotTo(HaveOccurred())
		Expect(head.RetryAfter).To(Equal(2 * time.Second))
	})

	It("refuses an end or an error that does not fit", func() {
		_, w, _ := exchange()
		Expect(w.WriteHead(okHead())).To(Succeed())
		Expect(w.Close(seal.End{PromptTokens: -1})).To(MatchError(seal.ErrMalformed))
		Expect(w.Close(seal.End{OutputTokens: 1 << 31})).To(MatchError(seal.ErrMalformed))
		Expect(w.Close(seal.End{Receipt: make([]byte, 8193)})).To(MatchError(seal.ErrTooLarge))
		Expect(w.Fail(make([]byte, seal.MaxFrameData+1))).To(MatchError(seal.ErrTooLarge))
		Expect(w.Close(okEnd())).To(Succeed())
	})

	DescribeTable("by a faulty enclave is malformed", func(write func(*seal.ResponseWriter)) {
		sealed, w, wire := exchange()
		write(w)
		_, err := readAnswer(sealed, wire.Bytes())
		Expect(err).To(MatchError(seal.ErrMalformed))
	},
		Entry("data before the head", frames(frame{kindData, []byte("x"), false}, frame{kindHead, goodHead(), false}, frame{kindEnd, goodEnd(), true})),
		Entry("an end without a head", frames(frame{kindEnd, goodEnd(), true})),
		Entry("two heads", frames(frame{kindHead, goodHead(), false}, frame{kindHead, goodHead(), false}, frame{kindEnd, goodEnd(), true})),
		Entry("a head marked final", frames(frame{kindHead, goodHead(), true})),
		Entry("data marked final", frames(frame{kindHead, goodHead(), false}, frame{kindData, []byte("x"), true})),
		Entry("an end not marked final", frames(frame{kindHead, goodHead(), false}, frame{kindEnd, goodEnd(), false})),
		Entry("an error not marked final", frames(frame{kindHead, goodHead(), false}, frame{kindError, []byte("{}"), false})),
		Entry("frame kind 0", frames(frame{kindHead, goodHead(), false}, frame{0, nil, false}, frame{kindEnd, goodEnd(), true})),
		Entry("frame kind 5", frames(frame{kindHead, goodHead(), false}, frame{5, nil, false}, frame{kindEnd, goodEnd(), true})),
		Entry("a head that is no CBOR", frames(frame{kindHead, []byte("x"), false}, frame{kindEnd, goodEnd(), true})),
		Entry("a head with data behind it", frames(frame{kindHead, append(goodHead(), 0), false}, frame{kindEnd, goodEnd(), true})),
		Entry("a head with status 99", frames(frame{kindHead, mustCBOR(map[int]any{1: 99, 2: ""}), false}, frame{kindEnd, goodEnd(), true})),
		Entry("an end that is no CBOR", frames(frame{kindHead, goodHead(), false}, frame{kindEnd, nil, true})),
		Entry("an end with a key twice", frames(frame{kindHead, goodHead(), false}, frame{kindEnd, []byte{0xa2, 1, 1, 1, 1}, true})),
		Entry("an end with more tokens than 31 bits", frames(frame{kindHead, goodHead(), false},
			frame{kindEnd, mustCBOR(map[int]any{1: uint32(1 << 31), 2: 0}), true})),
		Entry("padding that is not zero", headChunk(func(b []byte) []byte { b[511] = 1; return b })),
		Entry("data longer than the frame", headChunk(func(b []byte) []byte { b[1] = 2; return b })),
		Entry("a chunk above its bucket", headChunk(func(b []byte) []byte { return append(b, 0) })),
		Entry("a chunk below its bucket", headChunk(func(b []byte) []byte { return b[:511] })),
		Entry("an empty chunk", headChunk(func([]byte) []byte { return nil })),
	)

	It("may have keys in head and end that come later, and empty data", func() {
		sealed, w, wire := exchange()
		frames(
			frame{kindHead, mustCBOR(map[int]any{1: 200, 2: "text/plain", 9: "new"}), false},
			frame{kindData, nil, false},
			frame{kindData, []byte("x"), false},
			frame{kindEnd, mustCBOR(map[int]any{1: 2, 2: 3, 9: []byte{1}}), true},
		)(w)
		r := sealed.OpenResponse(wire)
		Expect(r.Head()).To(Equal(seal.Head{Status: 200, ContentType: "text/plain"}))
		Expect(io.ReadAll(r)).To(BeEquivalentTo("x"))
		Expect(r.End()).To(Equal(seal.End{PromptTokens: 2, OutputTokens: 3}))
	})

	It("pads with zeros, whatever was in the buffer", func() {
		dirty := bytes.Repeat([]byte{0xff}, 512)
		Expect(seal.AppendFrame(dirty[:0], kindData, []byte("x"))).To(Equal(append([]byte{kindData, 0, 1, 'x'}, make([]byte, 508)...)))
	})

	It("leaves nothing behind in reader or writer", func() {
		sealed, w, wire := exchange()
		Expect(w.WriteHead(okHead())).To(Succeed())
		_, err := w.Write([]byte(strings.Repeat("secret", 3000)))
		Expect(err).NotTo(HaveOccurred())
		Expect(zero(w.Frame())).To(BeTrue(), "after each write")
		Expect(w.WriteFrames(bytes.Repeat([]byte("secret"), 400), []int{2045, 509})).To(Succeed())
		Expect(zero(w.Frame())).To(BeTrue(), "after each write of several")
		Expect(w.Close(okEnd())).To(Succeed())
		Expect(zero(w.Frame())).To(BeTrue())

		r := sealed.OpenResponse(wire)
		dek := r.DEK()
		Expect(zero(dek)).To(BeFalse())
		_, err = r.Head()
		Expect(err).NotTo(HaveOccurred())
		Expect(zero(dek)).To(BeTrue())
		buf := r.Buffer()
		_, err = io.ReadAll(r)
		Expect(err).NotTo(HaveOccurred())
		Expect(&r.Buffer()[0]).To(BeIdenticalTo(&buf[0]), "one buffer throughout")
		Expect(zero(buf)).To(BeTrue())
		Expect(zero(sealed.DEK())).To(BeFalse(), "the request's own is kept for another attempt")
	})
})

type frame struct {
	kind  byte
	data  []byte
	final bool
}

func frames(all ...frame) func(*seal.ResponseWriter) {
	return func(w *seal.ResponseWriter) {
		GinkgoHelper()
		for _, f := range all {
			Expect(w.WriteFrame(f.kind, f.data, f.final)).To(Succeed())
		}
	}
}

// headChunk writes an answer that is good but for its head's chunk.
func headChunk(change func(plaintext []byte) []byte) func(*seal.ResponseWriter) {
	return func(w *seal.ResponseWriter) {
		GinkgoHelper()
		head := seal.AppendFrame(nil, kindHead, goodHead())
		Expect(w.WriteChunk(change(head), false)).To(Succeed())
		frames(frame{kindEnd, goodEnd(), true})(w)
	}
}

func goodHead() []byte { return mustCBOR(map[int]any{1: 200, 2: ""}) }
func goodEnd() []byte  { return mustCBOR(map[int]any{1: 1, 2: 1}) }

func mustCBOR(v any) []byte {
	b, err := seal.EncodeCBOR(v)
	if err != nil {
		panic(err)
	}
	return b
}

// constant is a source of one byte, for nonces that tests can know.
type constant byte

func (c constant) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(c)
	}
	return len(p), nil
}

// failAfter fails after n writes.
type failAfter struct {
	n   int
	err error
}

func (f *failAfter) Write(p []byte) (int, error) {
	if f.n == 0 {
		return 0, f.err
	}
	f.n--
	return len(p), nil
}

var _ = Describe("Frames for bytes that are not to be padded much", func() {
	sum := func(frames []int) (all int) {
		for _, holds := range frames {
			all += holds
		}
		return all
	}

	DescribeTable("are", func(full, n int, want ...int) { Expect(seal.Frames(full, n)).To(Equal(want)) },
		Entry("one", 0, 1, 509),
		Entry("one that is full", 0, 509, 509),
		Entry("two", 0, 510, 509, 509),
		Entry("three", 0, 1527, 509, 509, 509),
		Entry("one that takes the place of four", 0, 1528, 2045),
		Entry("a larger one and the rest", 0, 4*509+1, 2045, 509),
		Entry("of 31 units, all that there may be", 0, 31*509, 8189, 2045, 2045, 2045, 509, 509, 509),
		Entry("of 33, an even number", 0, 32*509+1, 16381, 509, 509),
		Entry("of 65, the next that four divides", 0, 64*509+1, 16381, 16381, 2045),
		Entry("the same when some are sealed already", 2, 1, 2045),
		Entry("for padding alone, when nothing is left", 33, 0, 16381),
		Entry("for more padding alone", 65, 0, 16381, 16381, 16381),
	)

	It("hold all of it, and more by less than the smallest holds and a fourteenth", func() {
		Expect(seal.Frames(0, 0)).To(BeEmpty())
		for n := 1; n < 2_000_000; n += 1 + n/997 {
			Expect(sum(seal.Frames(0, n))).To(And(BeNumerically(">=", n), BeNumerically("<", n+n/14+509)), "%d bytes", n)
		}
	})

	It("are the same for many lengths", func() {
		sizes := map[int]bool{}
		for n := 1; n <= 1<<18; n++ {
			sizes[sum(seal.Frames(0, n))] = true
		}
		Expect(len(sizes)).To(BeNumerically("<", 100), "of a quarter of a million lengths")
	})

	It("hold the rest of an answer that fills the largest as it comes", func() {
		for n := 1; n < 2_000_000; n += 1 + n/997 {
			full := n / seal.MaxFrameData
			rest := n - full*seal.MaxFrameData
			Expect(sum(seal.Frames(full, rest))).To(And(BeNumerically(">=", rest), BeNumerically("<", rest+n/14+509)), "%d bytes after %d frames", rest, full)
		}
	})
})

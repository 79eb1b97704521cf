package enclave_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/enclave"
	"github.com/mrgc/mrgc/internal/seal"
)

func waiting(wait time.Duration) func(*enclave.Config) {
	return func(c *enclave.Config) { c.AnswerWait = wait }
}

// oneOf is an event like others.
func oneOf(i int) string {
	return fmt.Sprintf("data: {\"n\":%03d,\"padding\":%q}\n\n", i, strings.Repeat("x", 200))
}

// chunksOf is what the plaintexts of a sealed answer's chunks have in bytes.
func chunksOf(wire []byte) (sizes []int) {
	GinkgoHelper()
	for rest := wire[1+8+32:]; len(rest) > 0; {
		length := int(binary.BigEndian.Uint16(rest[1:]))
		sizes, rest = append(sizes, length-16), rest[3+length:]
	}
	return sizes
}

// paces has an engine say events, each when it is told to.
func paces(say <-chan int) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		for {
			select {
			case i, more := <-say:
				if !more {
					_, _ = io.WriteString(w, done)
					return
				}
				_, _ = io.WriteString(w, oneOf(i))
				_ = http.NewResponseController(w).Flush()
			case <-req.Context().Done():
				return
			}
		}
	}
}

var _ = Describe("The events of a stream", func() {
	// begun is a stream of which the engine has said an event, and the tenant read it.
	begun := func(ctx SpecContext, wait time.Duration) (say chan<- int, reads func(events ...int), rest func() string) {
		GinkgoHelper()
		saying := make(chan int, 1)
		r := start(paces(saying), waiting(wait))
		sealed := r.seal(stream)
		var reader *seal.ResponseReader
		reads = func(events ...int) {
			GinkgoHelper()
			if reader == nil {
				reader = sealed.OpenResponse(r.send(r.post(sealed).WithContext(ctx)).Body)
			}
			for _, i := range events {
				got := make([]byte, len(oneOf(i)))
				_, err := io.ReadFull(reader, got)
				Expect(err).NotTo(HaveOccurred())
				Expect(string(got)).To(Equal(oneOf(i)))
			}
		}
		return saying, reads, func() string {
			GinkgoHelper()
			text, err := io.ReadAll(reader)
			Expect(err).NotTo(HaveOccurred())
			return string(text)
		}
	}

	It("wait for each other, but for the first two", func(ctx SpecContext) {
		say, reads, rest := begun(ctx, time.Hour)
		say <- 0
		reads(0)
		say <- 1
		reads(1)
		for i := 2; i < 10; i += 2 {
			say <- i
			say <- i + 1
			reads(i, i+1)
		}
		say <- 10
		close(say)
		Expect(rest()).To(Equal(oneOf(10) + done))
	}, NodeTimeout(specTimeout))

	DescribeTable("come, though no other comes", func(ctx SpecContext, wait time.Duration) {
		say, reads, rest := begun(ctx, wait)
		for i := range 5 {
			say <- i
			reads(i)
		}
		close(say)
		Expect(rest()).To(Equal(done))
	},
		Entry("once they have waited long enough", NodeTimeout(specTimeout), 2*time.Millisecond),
		Entry("at once where nothing is to wait", NodeTimeout(specTimeout), time.Duration(0)),
	)

	It("are cut as the engine cuts them, with what waited given out", func() {
		for n := range 6 {
			said := ""
			for i := range n {
				said += oneOf(i)
			}
			said += oneOf(n)[:100]
			r := start(says(said), waiting(time.Hour))
			a := r.ask(stream)
			expectBrokenOff(a)
			Expect(a.body).To(Equal(said))
		}
	})
})

var _ = Describe("The chunks of an answer", func() {
	It("have one of four sizes, whatever is answered and however it comes", func() {
		var text string
		r := start(func(w http.ResponseWriter, req *http.Request) { _, _ = io.WriteString(w, text) }, waiting(time.Millisecond))
		seen := map[int]bool{}
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			request := rapid.SampledFrom([]string{chat, stream}).Draw(t, "request")
			if text = strings.Repeat("x", rapid.IntRange(1, 50_000).Draw(t, "bytes")); request == stream {
				text = ""
				for range rapid.IntRange(0, 30).Draw(t, "events") {
					text += fmt.Sprintf("data: %q\n\n", strings.Repeat("x", rapid.OneOf(rapid.IntRange(200, 260), rapid.IntRange(0, 20_000)).Draw(t, "event")))
				}
				text += done
			}
			sealed := r.seal(request)
			wire := []byte(readAll(r.send(r.post(sealed))))
			body, err := io.ReadAll(sealed.OpenResponse(bytes.NewReader(wire)))
			if err != nil || string(body) != text {
				t.Fatalf("%d bytes became %d: %v", len(text), len(body), err)
			}
			for _, size := range chunksOf(wire) {
				seen[size] = true
			}
		})
		Expect(seen).To(HaveLen(4))
		Expect(seen).To(And(HaveKey(512), HaveKey(2048), HaveKey(8192), HaveKey(16384)))
	})

	DescribeTable("of one in one piece are few, and tell its length to within a frame", func(bytes int, want ...int) {
		r := start(says(strings.Repeat("x", bytes)))
		sealed := r.seal(chat)
		sizes := chunksOf([]byte(readAll(r.send(r.post(sealed)))))
		Expect(sizes[1 : len(sizes)-1]).To(Equal(want))
	},
		Entry("of a few bytes", 2, 512),
		Entry("of as many as a frame holds", 509, 512),
		Entry("of more", 510, 512, 512),
		Entry("of a few hundred tokens", 1500, 512, 512, 512),
		Entry("of many", 20_000, 16384, 2048, 2048),
		Entry("of so many that its rest is padded to the next size", 2*16381+1, 16384, 16384, 2048),
	)
})

package enclave_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
)

var _ = Describe("A sealed request", func() {
	It("is answered by the engine, and only the tenant can read it", func() {
		r := start(says(`{"choices":[{"text":"four"}]}`))
		sealed := r.seal(chat)
		resp := r.send(r.post(sealed))
		wire := readAll(resp)
		Expect(wire).NotTo(ContainSubstring("four"))
		resp.Body = io.NopCloser(strings.NewReader(wire))
		a := open(sealed, resp)
		Expect(a.err).NotTo(HaveOccurred())
		Expect(a.head).To(Equal(seal.Head{Status: 200, ContentType: "application/json"}))
		Expect(a.body).To(Equal(`{"choices":[{"text":"four"}]}`))
		Expect(r.engine.calls()).To(ConsistOf(And(
			HaveField("Path", "/v1/chat/completions"), HaveField("ContentType", "application/json"), HaveField("Body", MatchJSON(chat)),
		)))
	})

	It("carries nothing of the envelope on to the engine", func() {
		r := start(says(`{}`))
		Expect(r.ask(chat).err).NotTo(HaveOccurred())
		for name, values := range r.engine.calls()[0].Header {
			Expect(name).To(BeElementOf("Content-Type", "Content-Length", "User-Agent", "Accept-Encoding", api.HeaderCacheSalt))
			Expect(fmt.Sprint(values)).NotTo(Or(ContainSubstring(string(r.key.EnclaveToken())), ContainSubstring(marker)), "marker is the cache secret, too")
		}
	})

	It("for completions goes to the path of completions", func() {
		r := start(says(`{}`))
		a := r.ask(`{"model":"`+model+`","prompt":"2+2","echo":true}`, func(req *seal.Request) { req.Operation = seal.OpCompletions })
		Expect(a.err).NotTo(HaveOccurred())
		Expect(r.engine.calls()).To(ConsistOf(HaveField("Path", "/v1/completions")))
	})

	It("is written anew: the engine sees what was checked, without identities and orders to store", func() {
		r := start(says(`{}`))
		a := r.ask(` { "user":"me@example.com", "store":true, "metadata":{"k":"v"}, "safety_identifier":"x",
			"temperature" : 0.5, "messages" : [ {"role" : "user", "content": "a \u0062 <c>"} ], "model":"` + model + `" } `)
		Expect(a.err).NotTo(HaveOccurred())
		Expect(r.engine.calls()).To(HaveExactElements(HaveField("Body",
			`{"messages":[{"role":"user","content":"a \u0062 <c>"}],"model":"`+model+`","temperature":0.5}`)))
	})

	It("longer than a chunk arrives whole, and so does a long answer", func() {
		long := make([]byte, 100_000)
		for i := range long {
			long[i] = 'a' + byte(i%26)
		}
		r := start(says(`"` + string(long) + `"`))
		a := r.ask(`{"model":"` + model + `","messages":[{"role":"user","content":"` + string(long) + `"}]}`)
		Expect(a.err).NotTo(HaveOccurred())
		Expect(a.body).To(HaveLen(len(long) + 2))
		Expect(r.engine.calls()[0].Body).To(ContainSubstring(string(long)))
	})
})

var _ = Describe("A streamed answer", func() {
	It("reaches the tenant event by event, each before the engine makes the next", func(ctx SpecContext) {
		const events = 5
		seen := make(chan struct{}) // the tenant has the event that was written last
		r := start(func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			for i := range events {
				_, _ = fmt.Fprintf(w, "data: {\"n\":%d}\n\n", i)
				_ = http.NewResponseController(w).Flush()
				select {
				case <-seen:
				case <-req.Context().Done():
					return
				}
			}
			_, _ = io.WriteString(w, "data: [DONE]\n\n")
		})
		sealed := r.seal(stream)
		reader := sealed.OpenResponse(r.send(r.post(sealed).WithContext(ctx)).Body)
		for i := range events {
			want := fmt.Sprintf("data: {\"n\":%d}\n\n", i)
			got := make([]byte, len(want))
			_, err := io.ReadFull(reader, got)
			Expect(err).NotTo(HaveOccurred())
			Expect(string(got)).To(Equal(want))
			seen <- struct{}{}
		}
		rest, err := io.ReadAll(reader)
		Expect(err).NotTo(HaveOccurred())
		Expect(string(rest)).To(Equal("data: [DONE]\n\n"))
	}, NodeTimeout(specTimeout))

	It("is ended at the engine when the tenant has gone", func(ctx SpecContext) {
		gone := make(chan struct{})
		r := start(func(w http.ResponseWriter, req *http.Request) {
			_, _ = io.WriteString(w, "data: {}\n\n")
			_ = http.NewResponseController(w).Flush()
			<-req.Context().Done()
			close(gone)
		})
		asking, hangUp := context.WithCancel(ctx)
		defer hangUp()
		sealed := r.seal(stream)
		reader := sealed.OpenResponse(r.send(r.post(sealed).WithContext(asking)).Body)
		_, err := reader.Read(make([]byte, 8))
		Expect(err).NotTo(HaveOccurred())
		hangUp()
		Eventually(ctx, gone).Should(BeClosed())
	}, NodeTimeout(specTimeout))
})

var _ = Describe("An answer that has not begun", func() {
	It("shows nothing, not even its head: until then the request can be moved", func(ctx SpecContext) {
		headSent, begin := make(chan struct{}), make(chan struct{})
		r := start(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			close(headSent)
			<-begin
			_, _ = io.WriteString(w, `{}`)
		})
		sealed := r.seal(chat)
		answered := make(chan *http.Response, 1)
		go func() {
			defer GinkgoRecover()
			answered <- r.send(r.post(sealed))
		}()
		Eventually(ctx, headSent).Should(BeClosed())
		Consistently(answered, "100ms").ShouldNot(Receive())
		close(begin)
		var resp *http.Response
		Eventually(ctx, answered).Should(Receive(&resp))
		Expect(open(sealed, resp).err).NotTo(HaveOccurred())
	}, NodeTimeout(specTimeout))
})

package extproc_test

import (
	"sync"
	"time"

	accesslogdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mrgc/mrgc/extproc"
	"github.com/mrgc/mrgc/internal/size"
)

// heard collects what is told of requests that have ended.
type heard struct {
	mu  sync.Mutex
	all []extproc.Ended // guarded by mu
}

func (h *heard) hear(e extproc.Ended) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, e)
}

func (h *heard) take() []extproc.Ended {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := h.all
	h.all = nil
	return all
}

// times makes an entry one of a request that the instance was sent after 5 ms.
func times(first, last time.Duration) func(*accessLogCommon) {
	return func(c *accessLogCommon) {
		c.TimeToFirstUpstreamTxByte = durationpb.New(5 * time.Millisecond)
		c.UpstreamRequestAttemptCount = 1
		c.Duration = durationpb.New(9 * time.Second)
		if first > 0 {
			c.TimeToFirstUpstreamRxByte, c.TimeToLastUpstreamRxByte = durationpb.New(5*time.Millisecond+first), durationpb.New(5*time.Millisecond+last)
		}
	}
}

func attempts(n uint32) func(*accessLogCommon) {
	return func(c *accessLogCommon) { c.UpstreamRequestAttemptCount = n }
}

// of makes an entry one of a request for the model, of a size, with so many bytes of answer.
func of(bytes uint64, entry *accesslogdatav3.HTTPAccessLogEntry) *accesslogdatav3.HTTPAccessLogEntry {
	entry.Request.RequestHeaders = map[string]string{"mrgc-model": model, "mrgc-size": "256/64"}
	if entry.Response == nil {
		entry = status(200, entry)
	}
	entry.Response.ResponseBodyBytes = bytes
	return entry
}

var _ = Describe("What is told of a request that has ended", func() {
	const ms = time.Millisecond
	sizes := size.Buckets{Prompt: 256, Output: 64}
	gone := &accesslogdatav3.ResponseFlags{DownstreamConnectionTermination: true}

	DescribeTable("is how its instance did", func(ctx SpecContext, entry *accesslogdatav3.HTTPAccessLogEntry, want extproc.Ended) {
		var h heard
		harness := logged(func(c *extproc.Config) { c.Ended = h.hear })
		harness.log(ctx, entry)
		told := h.take()
		Expect(told).To(HaveLen(1))
		Expect(told[0].Instance.ID).To(Equal("use1-0"))
		told[0].Instance = nil
		want.Model, want.Size = model, sizes
		Expect(told[0]).To(Equal(want))
	},
		Entry("a stream", of(20*512, used("64/128", ended("1", at(1), times(100*ms, 740*ms)))), extproc.Ended{FirstByte: 100 * ms, Output: 128, PerToken: 5 * ms}),
		Entry("a stream whose tokens were sealed in fewer chunks, the same", of(10*512, used("64/128", ended("1", at(1), times(100*ms, 740*ms)))), extproc.Ended{FirstByte: 100 * ms, Output: 128, PerToken: 5 * ms}),
		Entry("a stream of which nothing is known but its chunks", of(20*512, ended("1", at(1), times(100*ms, 740*ms))), extproc.Ended{FirstByte: 100 * ms}),
		Entry("a stream of which something else is said", of(20*512, used("64/100", ended("1", at(1), times(100*ms, 740*ms)))), extproc.Ended{FirstByte: 100 * ms}),
		Entry("an answer in one piece, however large", of(100*512, used("64/1024", ended("1", at(1), times(1000*ms, 1005*ms)))), extproc.Ended{FirstByte: 1000 * ms, Output: 1024}),
		Entry("a stream of a few tokens", of(7*512, used("64/64", ended("1", at(1), times(100*ms, 300*ms)))), extproc.Ended{FirstByte: 100 * ms, Output: 64}),
		Entry("one that had been elsewhere", of(20*512, ended("1", at(1), times(100*ms, 300*ms), attempts(2))), extproc.Ended{}),
		Entry("an engine that failed", of(600, engine("failed", ended("1", at(1), times(10*ms, 10*ms)))), extproc.Ended{Failed: true, FirstByte: 10 * ms}),
		Entry("an engine that would not", of(600, engine("refused", ended("1", at(1), times(10*ms, 10*ms)))), extproc.Ended{Refused: true, FirstByte: 10 * ms}),
		Entry("a status from 500", of(600, status(500, ended("1", at(1), times(10*ms, 10*ms)))), extproc.Ended{Failed: true, FirstByte: 10 * ms}),
		Entry("a client that had enough of waiting", of(0, status(0, ended("1", at(1), times(0, 0), flags(gone)))), extproc.Ended{FirstByte: 8995 * ms}),
	)

	DescribeTable("is nothing where nothing is known", func(ctx SpecContext, entry *accesslogdatav3.HTTPAccessLogEntry) {
		var h heard
		harness := logged(func(c *extproc.Config) { c.Ended = h.hear })
		harness.log(ctx, entry)
		Expect(h.take()).To(BeEmpty())
	},
		Entry("it went nowhere", of(0, status(503, ended("1")))),
		Entry("it went to who is not in the fleet", of(0, ended("1", at(9), times(100*ms, 300*ms)))),
		Entry("Envoy had nobody to ask", of(0, status(503, ended("1", at(1), flags(&accesslogdatav3.ResponseFlags{NoHealthyUpstream: true}))))),
	)

	It("is as much as is well formed", func(ctx SpecContext) {
		var h heard
		harness := logged(func(c *extproc.Config) { c.Ended = h.hear })
		entry := of(0, ended("1", at(1), times(100*ms, 100*ms)))
		entry.Request.RequestHeaders["mrgc-size"] = "256/63"
		harness.log(ctx, entry, status(200, ended("2", at(1))))
		told := h.take()
		Expect(told[0].Size).To(BeZero())
		Expect(told[1]).To(And(HaveField("Model", ""), HaveField("FirstByte", time.Duration(0))))
	})

	It("is that the first instance failed a request that moved, and how the last one did", func(ctx SpecContext) {
		var h heard
		harness := logged(func(c *extproc.Config) { c.Ended = h.hear })
		first := 1
		if picked(harness.ask(ctx, sealed("1").with("mrgc-size", "256/64"))) != "10.0.0.1:8080,10.0.0.2:8080" {
			first = 2
		}
		harness.log(ctx, ended("1", at(3-first), logType("UpstreamPoolReady")), of(20*512, ended("1", at(3-first), times(100*ms, 300*ms), attempts(2))))
		told := h.take()
		Expect(told).To(HaveLen(2))
		Expect(told[0]).To(And(HaveField("Failed", true), HaveField("Model", model), HaveField("Size.Prompt", 256), HaveField("FirstByte", time.Duration(0))))
		Expect(told[0].Instance.Address).To(HavePrefix("10.0.0." + string(rune('0'+first))))
		Expect(told[1]).To(And(HaveField("Failed", false), HaveField("FirstByte", time.Duration(0))))
		Expect(told[1].Instance).NotTo(Equal(told[0].Instance))
	})
})

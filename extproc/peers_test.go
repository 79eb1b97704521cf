package extproc_test

import (
	"context"
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/extproc"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/peers"
	"github.com/mrgc/mrgc/internal/routing"
)

// pair is two pickers of a region, and what each has been told by the other.
type pair struct {
	a, b *harness
	told map[*harness]*extproc.Told
}

func twoPickers(ctx context.Context, change ...func(*extproc.Config)) *pair {
	GinkgoHelper()
	p := &pair{a: logged(change...)}
	p.a.log(ctx) // so that its connection is there before the other one looks for leaks
	p.b = logged(change...)
	p.told = map[*harness]*extproc.Told{p.a: {}, p.b: {}}
	return p
}

// tell has one picker tell the other, over the wire's form.
func (p *pair) tell(from, to *harness) {
	GinkgoHelper()
	raw, err := from.picker.Tell(p.told[to]).Encode()
	Expect(err).NotTo(HaveOccurred())
	message, err := peers.Decode(raw)
	Expect(err).NotTo(HaveOccurred())
	Expect(to.picker.Learn("10.0.0.9:9001", message)).To(BeTrue())
}

var _ = Describe("Two pickers of a region", func() {
	It("see each other's requests, and count their own apart", func(ctx SpecContext) {
		p := twoPickers(ctx)
		p.a.ask(ctx, toA("1"))
		p.a.ask(ctx, toA("2"))
		p.b.ask(ctx, toA("3"))
		p.tell(p.a, p.b)
		p.tell(p.b, p.a)
		for _, h := range []*harness{p.a, p.b} {
			Expect(h.seen("use1-0").InFlight).To(Equal(3))
			Expect(h.seen("use1-0").InFlightTokens).To(Equal(3 * 1024))
			Expect(h.seen("use1-1").InFlight).To(BeZero())
		}
		Expect(p.a.picker.InFlight("use1-0")).To(Equal(2))
		Expect(p.b.picker.InFlight("use1-0")).To(Equal(1))
		metrics := p.b.metrics()
		Expect(metrics).To(HaveKeyWithValue("mrgc_in_flight use1-0 use1", 1.0))
		Expect(metrics).To(HaveKeyWithValue("mrgc_in_flight_tokens use1-0 use1", 1024.0))
		Expect(metrics).To(HaveKeyWithValue("mrgc_peers_in_flight use1-0 use1", 2.0))
		Expect(metrics).To(HaveKeyWithValue("mrgc_peers_in_flight_tokens use1-0 use1", 2048.0))
		Expect(metrics).To(HaveKeyWithValue("mrgc_peers_in_flight use1-1 use1", 0.0))

		p.a.log(ctx, status(200, ended("1", at(1))))
		p.tell(p.a, p.b)
		Expect(p.b.seen("use1-0").InFlight).To(Equal(2))
	})

	It("pick by what the other has in flight", func(ctx SpecContext) {
		p := twoPickers(ctx)
		for i := range 3 {
			p.a.ask(ctx, toA(fmt.Sprint(i)))
		}
		p.tell(p.a, p.b)
		for i := range 3 {
			Expect(picked(p.b.ask(ctx, sealed(fmt.Sprint("b", i))))).To(HavePrefix("10.0.0.2:8080"))
		}
	})

	It("add to an instance's report what both have sent since", func(ctx SpecContext) {
		reported := epoch()
		var p *pair
		p = twoPickers(ctx, func(c *extproc.Config) {
			c.Report = func(*fleet.Instance) routing.Report {
				return routing.Report{Age: routing.AgeFresh, Since: p.a.time().Sub(reported)}
			}
		})
		later := func(d time.Duration) { p.a.advance(d); p.b.advance(d) }
		later(20 * time.Millisecond)
		p.a.ask(ctx, toA("1"))
		p.b.ask(ctx, toA("2"))
		p.tell(p.a, p.b)
		sent := func(h *harness) [2]int {
			seen := h.seen("use1-0")
			return [2]int{seen.SentRequests, seen.SentTokens}
		}
		Expect(sent(p.b)).To(Equal([2]int{2, 2 * 1024}))
		Expect(sent(p.a)).To(Equal([2]int{1, 1024}), "as long as it has not been told")
		later(10 * time.Millisecond)
		reported = p.a.time() // which has them
		later(10 * time.Millisecond)
		Expect(sent(p.b)).To(Equal([2]int{}))
		Expect(p.b.seen("use1-0").InFlightTokens).To(Equal(2 * 1024))
		p.tell(p.a, p.b)
		Expect(sent(p.b)).To(Equal([2]int{}), "the other has seen the report, too")
	})

	It("take every request to another region's instance for one that may be on its way", func(ctx SpecContext) {
		p := twoPickers(ctx, func(c *extproc.Config) {
			c.Report = func(*fleet.Instance) routing.Report {
				return routing.Report{Age: routing.AgeFresh, Since: 20 * time.Millisecond}
			}
		})
		for _, h := range []*harness{p.a, p.b} {
			h.see(instance("use1-0", "use1", kidA, portA), instance("use2-0", "use2", kidB, portB))
			for i := range 2 {
				h.ask(ctx, toA(fmt.Sprint(i)).with("mrgc-recipients", []string{kidA, kidB}[i]))
			}
			h.advance(30 * time.Millisecond)
		}
		Expect(p.b.seen("use1-0").SentRequests).To(BeZero())
		Expect(p.b.seen("use2-0").SentRequests).To(Equal(1))
		p.tell(p.a, p.b)
		Expect(p.b.seen("use1-0").SentRequests).To(BeZero())
		Expect(p.b.seen("use2-0").SentRequests).To(Equal(2))
	})

	It("count nothing of one that was not heard for a second, or is no longer followed", func(ctx SpecContext) {
		p := twoPickers(ctx)
		p.a.ask(ctx, toA("1"))
		p.tell(p.a, p.b)
		p.b.advance(peers.ViewFor)
		Expect(p.b.seen("use1-0").InFlight).To(BeZero())
		p.tell(p.a, p.b)
		Expect(p.b.seen("use1-0").InFlight).To(Equal(1))
		Expect(p.b.picker.Peers()).To(HaveExactElements(HaveField("Requests", 1)))
		p.b.picker.Forget("10.0.0.9:9001")
		Expect(p.b.seen("use1-0").InFlight).To(BeZero())
		Expect(p.b.picker.Peers()).To(BeEmpty())
	})

	It("know themselves", func(ctx SpecContext) {
		h := logged()
		h.ask(ctx, toA("1"))
		Expect(h.picker.Learn("10.0.0.9:9001", h.picker.Tell(&extproc.Told{}))).To(BeFalse())
		Expect(h.seen("use1-0").InFlight).To(Equal(1))
	})

	It("drop what is said of instances that are not in the fleet", func(ctx SpecContext) {
		p := twoPickers(ctx)
		p.a.ask(ctx, sealed("1").with("mrgc-recipients", kidB).and("mrgc-affinity", "conversation"))
		p.b.see(instance("use1-0", "use1", kidA, portA))
		p.tell(p.a, p.b)
		Expect(p.b.picker.Peers()).To(HaveExactElements(HaveField("Requests", 0)))
		p.b.seeSnapshot(nil)
		p.tell(p.a, p.b)
		Expect(p.b.picker.Peers()).To(HaveExactElements(HaveField("Requests", 0)))
	})

	It("send a conversation home that began at the other, and tell no third", func(ctx SpecContext) {
		p := twoPickers(ctx)
		request := func(i int) headers { return sealed(fmt.Sprint(i)).with("mrgc-request-id", fmt.Sprintf("%032x", i)) }
		for i := range 20 { // of which a hash would send about half elsewhere
			affinity := fmt.Sprint("conversation", i)
			home := picked(p.a.ask(ctx, request(i).and("mrgc-affinity", affinity)))
			p.a.log(ctx, ended(fmt.Sprint(i)))
			p.tell(p.a, p.b)
			Expect(picked(p.b.ask(ctx, request(100+i).and("mrgc-affinity", affinity)))).To(Equal(home))
			p.b.log(ctx, ended(fmt.Sprint(100+i)))
		}
		Expect(p.b.picker.Tell(&extproc.Told{}).Homes).To(BeEmpty())
		Expect(p.a.picker.Tell(p.told[p.b]).Homes).To(BeEmpty()) // once is enough
	})

	It("bound what they tell at once, and what they keep to tell", func(ctx SpecContext) {
		h := logged()
		for i := range 1100 {
			h.log(ctx, ended(fmt.Sprint(i)))
		}
		var told extproc.Told
		var heard []string
		for {
			m := h.picker.Tell(&told)
			if len(m.Events) == 0 {
				break
			}
			Expect(len(m.Events)).To(BeNumerically("<=", peers.MaxEvents))
			for _, e := range m.Events {
				heard = append(heard, e.Request)
			}
		}
		Expect(heard).To(HaveLen(1024))
		Expect(heard[0]).To(Equal("76"))
		Expect(heard[1023]).To(Equal("1099"))
	})

	Describe("when Envoy's log reaches the other one", func() {
		It("count a request off all the same", func(ctx SpecContext) {
			p := twoPickers(ctx)
			p.a.ask(ctx, toA("1"))
			p.b.log(ctx, status(200, ended("1", at(1))))
			Expect(p.a.picker.InFlight("use1-0")).To(Equal(1))
			p.tell(p.b, p.a)
			Expect(p.a.picker.InFlight("use1-0")).To(BeZero())
			Expect(p.a.seen("use1-0").ErrorRate).To(BeZero())
		})

		It("learn where a retry went, and who failed", func(ctx SpecContext) {
			p := twoPickers(ctx)
			for i := range 4 {
				id := fmt.Sprint(i)
				p.a.ask(ctx, toA(id))
				p.b.log(ctx, ended(id, at(2), logType("UpstreamPoolReady")))
			}
			p.tell(p.b, p.a)
			Expect(p.a.picker.InFlight("use1-0")).To(BeZero())
			Expect(p.a.picker.InFlight("use1-1")).To(Equal(4))
			Expect(p.a.seen("use1-0").ErrorRate).To(BeNumerically(">", 0.5))
			for i := range 4 {
				p.b.log(ctx, status(503, ended(fmt.Sprint(i), at(2))))
			}
			p.tell(p.b, p.a)
			Expect(p.a.picker.InFlight("use1-1")).To(BeZero())
			Expect(p.a.seen("use1-1").ErrorRate).To(BeNumerically(">", 0.5))
		})

		It("learn from no request that they did not pick", func(ctx SpecContext) {
			p := twoPickers(ctx)
			p.b.log(ctx, status(500, ended("nobody's", at(1))))
			p.tell(p.b, p.a)
			Expect(p.a.seen("use1-0").ErrorRate).To(BeZero())
		})

		It("do without the name of an instance that they do not know", func(ctx SpecContext) {
			p := twoPickers(ctx)
			p.a.see(instance("use1-0", "use1", kidA, portA))
			p.a.ask(ctx, toA("1"))
			p.b.log(ctx, status(500, ended("1", at(2))))
			p.tell(p.b, p.a)
			Expect(p.a.picker.InFlight("use1-0")).To(BeZero())
		})
	})

	DescribeTable("have something to tell after", func(ctx SpecContext, happen func(ctx SpecContext, h *harness)) {
		h := logged()
		h.ask(ctx, toA("before"))
		changed := h.picker.Changed()
		Expect(h.picker.Changed()).To(Equal(changed))
		Expect(changed).NotTo(BeClosed())
		happen(ctx, h)
		Eventually(changed).Should(BeClosed())
		Expect(h.picker.Changed()).NotTo(BeClosed())
	},
		Entry("a pick", func(ctx SpecContext, h *harness) { h.ask(ctx, toA("1")) }),
		Entry("an end", func(ctx SpecContext, h *harness) { h.log(ctx, ended("before", at(1))) }),
		Entry("a retry", func(ctx SpecContext, h *harness) { h.log(ctx, ended("before", at(2), logType("UpstreamPoolReady"))) }),
		Entry("another's end", func(ctx SpecContext, h *harness) { h.log(ctx, ended("other", at(1))) }),
	)

	It("tell of nothing that has timed out", func(ctx SpecContext) {
		h := start(func(c *extproc.Config) { c.InFlightTimeout = time.Minute })
		h.see(instance("use1-0", "use1", kidA, portA), instance("use1-1", "use1", kidB, portB))
		h.ask(ctx, toA("1"))
		var told extproc.Told
		first := h.picker.Tell(&told)
		Expect(first.InFlight).To(HaveExactElements(HaveField("Requests", 1)))
		h.advance(time.Minute + 1)
		second := h.picker.Tell(&told)
		Expect(second.InFlight).To(BeEmpty())
		Expect(second.Epoch).To(Equal(first.Epoch))
		Expect(second.Sequence).To(Equal(first.Sequence + 1))
	})
})

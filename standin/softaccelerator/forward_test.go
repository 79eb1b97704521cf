package softaccelerator_test

import (
	"io"
	"net"
	"syscall"

	"github.com/aws/aws-sdk-go-v2/service/globalaccelerator/types"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/standin/softaccelerator"
)

var _ = Describe("What is forwarded", func() {
	It("goes to the region that is nearest to the client", func(ctx SpecContext) {
		w := newWorld().ready(ctx)
		Expect(w.reached(east)).To(Equal("us-east-1"))
		Expect(w.reached(west)).To(Equal("us-west-2"))
	})

	It("follows a dial once it is deployed, but for connections that are there", func(ctx SpecContext) {
		w := newWorld().ready(ctx)
		before := w.connect(east)
		Expect(before.line()).To(Equal("us-east-1"))
		w.drawn(0.4)
		w.dial(ctx, "us-east-1", 30)
		w.clock.Advance(-deploy / 2)
		Expect(w.status(ctx)).To(Equal(types.AcceleratorStatusInProgress))
		Expect(w.reached(east)).To(Equal("us-east-1"), "it is not deployed yet")
		w.clock.Advance(deploy / 2)
		Expect(w.status(ctx)).To(Equal(types.AcceleratorStatusDeployed))
		Expect(w.reached(east)).To(Equal("us-east-2"))
		Expect(w.reached(west)).To(Equal("us-west-2"))
		w.drawn(0.29)
		Expect(w.reached(east)).To(Equal("us-east-1"), "30 %% stay")
		w.dial(ctx, "us-east-1", 0)
		Expect(w.reached(east)).To(Equal("us-east-2"))
		Expect(before.repeats("still here")).To(BeTrue())
	})

	It("fails over when checks have failed, to a region whose dial is 0, and comes back later than its health", func(ctx SpecContext) {
		w := newWorld().ready(ctx)
		w.dial(ctx, "us-east-2", 0)
		before := w.connect(east)
		Expect(before.line()).To(Equal("us-east-1"))
		w.doors["us-east-1"].well.Store(false)
		w.expectHealth(ctx, "us-east-1", types.HealthStateUnhealthy)
		Expect(w.reached(east)).To(Equal("us-east-2"))
		Expect(before.repeats("still here")).To(BeTrue())
		w.doors["us-east-1"].well.Store(true)
		w.expectHealth(ctx, "us-east-1", types.HealthStateHealthy)
		Expect(w.reached(east)).To(Equal("us-east-2"), "it is healthy, and gets nothing yet")
		w.clock.Advance(back)
		Expect(w.reached(east)).To(Equal("us-east-1"))
	})

	It("goes to the nearest when nobody is healthy", func(ctx SpecContext) {
		w := newWorld().ready(ctx)
		for region, d := range w.doors {
			d.well.Store(false)
			w.expectHealth(ctx, region, types.HealthStateUnhealthy)
		}
		Expect(w.reached(west)).To(Equal("us-west-2"))
		Expect(w.reached(east)).To(Equal("us-east-1"))
	})

	It("is reset when a region is dead and not known to be", func(ctx SpecContext) {
		w := newWorld().ready(ctx)
		before := w.connect(east)
		Expect(before.line()).To(Equal("us-east-1"))
		w.doors["us-east-1"].close()
		_, err := w.connect(east).line()
		Expect(err).To(MatchError(syscall.ECONNRESET))
		Expect(before.repeats("still here")).To(BeFalse())
		Expect(w.reached(west)).To(Equal("us-west-2"))
	})

	It("may be closed by halves", func(ctx SpecContext) {
		w := newWorld().ready(ctx)
		c := w.connect(east)
		Expect(c.line()).To(Equal("us-east-1"))
		Expect(c.repeats("one")).To(BeTrue())
		Expect(c.Conn.(*net.TCPConn).CloseWrite()).To(Succeed())
		Expect(c.line()).To(Equal("bye"))
		_, err := c.line()
		Expect(err).To(MatchError(io.EOF))
	})

	It("ends with the accelerator", func(ctx SpecContext) {
		w := newWorld().ready(ctx)
		c := w.connect(east)
		Expect(c.line()).To(Equal("us-east-1"))
		w.stop()
		_, err := c.line()
		Expect(err).To(HaveOccurred())
		_, err = net.Dial("tcp", w.clients[east])
		Expect(err).To(MatchError(syscall.ECONNREFUSED))
	})

	It("is checked by TCP, at the endpoint itself, when the group says nothing else", func(ctx SpecContext) {
		w := newWorld(func(c *softaccelerator.Config) { c.Groups[0].Check = softaccelerator.Check{IntervalSeconds: 10} }).ready(ctx)
		w.doors["us-east-1"].well.Store(false) // which nobody asks
		w.doors["us-east-1"].close()
		w.expectHealth(ctx, "us-east-1", types.HealthStateUnhealthy)
		Expect(w.reached(east)).To(Equal("us-east-2"))
	})
})

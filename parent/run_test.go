package parent_test

import (
	"context"
	"io"
	"net/http"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/parent"
)

var _ = Describe("A drain", func() {
	It("takes the instance out of the fleet, finishes what is under way, and ends well", func(ctx SpecContext) {
		in := start()
		entered, leave := make(chan struct{}), make(chan struct{})
		in.enclave.answers(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "first half, ")
			_ = http.NewResponseController(w).Flush()
			close(entered)
			<-leave
			_, _ = io.WriteString(w, "second half")
		})
		in.eventuallyRegistered(ctx, healthy())
		resp := in.send(in.sealed(ctx, "request"))
		Eventually(ctx, entered).Should(BeClosed())

		in.stop()
		Eventually(ctx, in.registered).Should(BeNil())
		Consistently(in.done, "100ms").ShouldNot(Receive())
		Expect(in.registered(ctx)).To(BeNil(), "a late heartbeat has registered it again")
		_, err := in.client(envoyID).Do(in.sealed(ctx, "new request"))
		Expect(err).To(MatchError(ContainSubstring("connection refused")))

		close(leave)
		Expect(readAll(resp)).To(Equal("first half, second half"))
		Eventually(ctx, in.done).Should(Receive(BeNil()))
	}, NodeTimeout(specTimeout))

	It("keeps the way to the engine open until the last request is done", func(ctx SpecContext) {
		in := start()
		entered, leave := make(chan struct{}, 1), make(chan struct{})
		in.enclave.answers(waitsIn(entered, leave))
		answered := in.sending(in.sealed(ctx, "request"))
		Eventually(ctx, entered).Should(Receive())
		in.eventuallyRegistered(ctx, healthy())
		in.stop()
		Eventually(ctx, in.registered).Should(BeNil())
		conn := in.dialEngine(ctx)
		expectEcho(conn, "during the drain")
		close(leave)
		var resp *http.Response
		Eventually(ctx, answered).Should(Receive(&resp))
		Expect(readAll(resp)).To(Equal("sealed answer"))
		Expect(resp.Body.Close()).To(Succeed())
		Eventually(ctx, in.done).Should(Receive(BeNil()))
		expectClosed(conn)
	}, NodeTimeout(specTimeout))

	It("cuts what takes too long", func(ctx SpecContext) {
		in := start(func(c *parent.Config) { c.DrainTimeout = 50 * time.Millisecond })
		entered := make(chan struct{}, 1)
		in.enclave.answers(waitsIn(entered, nil))
		answered := in.sending(in.sealed(ctx, "request"))
		Eventually(ctx, entered).Should(Receive())
		in.stop()
		Eventually(ctx, in.done).Should(Receive(BeNil()))
		Eventually(ctx, answered).Should(BeClosed(), "the client is not told that it is over")
		Expect(answered).NotTo(Receive())
	}, NodeTimeout(specTimeout))

	It("hangs up on enclave and guard", func(ctx SpecContext) {
		in := start()
		in.eventuallyRegistered(ctx, healthy())
		Expect(in.enclave.open.Load()).To(BeNumerically(">", 0))
		Expect(in.guard.open.Load()).To(BeNumerically(">", 0))
		in.stop()
		Eventually(ctx, in.done).Should(Receive(BeNil()))
		Eventually(ctx, in.enclave.open.Load).Should(BeZero())
		Eventually(ctx, in.guard.open.Load).Should(BeZero())
	}, NodeTimeout(specTimeout))

	It("does not need the store", func(ctx SpecContext) {
		in := start()
		in.eventuallyRegistered(ctx, healthy())
		in.store.away.Store(true)
		in.stop()
		Eventually(ctx, in.done).Should(Receive(BeNil()))
	}, NodeTimeout(specTimeout))
})

var _ = Describe("A parent whose part fails for good", func() {
	DescribeTable("leaves the fleet and ends with the reason",
		func(ctx SpecContext, breakIt func(*instance), reason string) {
			in := start()
			in.eventuallyRegistered(ctx, healthy())
			breakIt(in)
			Eventually(ctx, in.done).Should(Receive(MatchError(ContainSubstring(reason))))
			Expect(in.registered(ctx)).To(BeNil())
		},
		Entry("its own port", NodeTimeout(specTimeout), func(in *instance) { _ = in.listener.Close() }, "serve requests"),
		Entry("the engine relay", NodeTimeout(specTimeout), func(in *instance) { _ = in.relay.Close() }, "connections to the engine"),
	)
})

var _ = Describe("A parent", func() {
	DescribeTable("is not made",
		func(because string, change func(*instance, *parent.Config)) {
			in := surroundings()
			config := in.config()
			_, err := parent.New(config)
			Expect(err).NotTo(HaveOccurred())
			change(in, &config)
			_, err = parent.New(config)
			Expect(err).To(MatchError(ContainSubstring(because)))
		},
		Entry("without a store", "no store", func(_ *instance, c *parent.Config) { c.Store = nil }),
		Entry("without an identity", "no identity", func(_ *instance, c *parent.Config) { c.Identity = nil }),
		Entry("without an enclave", "want a way to dial the enclave", func(_ *instance, c *parent.Config) { c.DialEnclave = nil }),
		Entry("without a relay", "no relay", func(_ *instance, c *parent.Config) { c.EngineRelay = nil }),
		Entry("without a guard", "no relay", func(_ *instance, c *parent.Config) { c.DialGuard = nil }),
		Entry("with a relay to KMS and no way on", "all three or none", func(in *instance, c *parent.Config) { c.KMSRelay = in.relay }),
		Entry("with credentials and no relay to KMS", "all three or none", func(_ *instance, c *parent.Config) {
			c.Credentials = func(context.Context) (api.AWSCredentials, error) { return api.AWSCredentials{}, nil }
		}),
		Entry("with a relay to DynamoDB and no way on", "both or none", func(in *instance, c *parent.Config) { c.DynamoDBRelay = in.relay }),
		Entry("with a way to DynamoDB and none to KMS", "only with a relay to KMS", func(in *instance, c *parent.Config) {
			c.DynamoDBRelay, c.DialDynamoDB = in.relay, c.DialGuard
		}),
		Entry("at an address that nobody can dial", "address", func(_ *instance, c *parent.Config) { c.Instance.Address = ":8080" }),
		Entry("as another instance", "identity is", func(_ *instance, c *parent.Config) { c.Instance.ID = "use1-1" }),
		Entry("in another region", "identity is", func(_ *instance, c *parent.Config) { c.Instance.Region = fleet.Region("usw2") }),
		Entry("as a guard", "identity is", func(in *instance, c *parent.Config) { c.Identity = in.source(guardID) }),
	)
})

package xds_test

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/xds"
)

var _ = Describe("A server's settings", func() {
	now := func(change func(*xds.Settings)) xds.Settings {
		c := testConfig()
		s := xds.Settings{SpillTo: c.SpillTo, Models: c.Models}
		change(&s)
		return s
	}
	begin := func() (*xds.Server, *envoyDouble) {
		GinkgoHelper()
		server := startServer(testConfig())
		server.Update(snapshotOf(readyInstance("use1-0", "use1", "10.0.0.1:8080"), readyInstance("use2-0", "use2", "10.0.0.2:8080")))
		setCertificate(server)
		Eventually(server.Ready).Should(Succeed())
		envoy := dialer(server)("e1", "use1")
		envoy.settle()
		return server, envoy
	}

	It("change what Envoys have, and nothing that they do not say", func() {
		server, envoy := begin()
		Expect(server.SetSettings(now(func(s *xds.Settings) { s.MaxBodyBytes = 4096 }))).To(Succeed())
		resp := envoy.take(route)
		Expect(string(byName(resp)["tenants"])).To(ContainSubstring(`"start":"4097"`))
		Consistently(envoy.responses, "100ms").ShouldNot(Receive(), "the listener, whose change would drain connections, is as it was")

		Expect(server.SetSettings(now(func(s *xds.Settings) { s.MaxBodyBytes = 4096; s.ResponseIdleTimeout = 90 * time.Second }))).To(Succeed())
		Expect(string(byName(envoy.take(listener))["tenants"])).To(ContainSubstring(`"stream_idle_timeout":"90s"`))
		Expect(string(byName(envoy.take(route))["tenants"])).To(ContainSubstring(`"idle_timeout":"90s"`))
	})

	It("add and take away models", func() {
		server, envoy := begin()
		Expect(server.SetSettings(now(func(s *xds.Settings) { s.Models = []string{model, "new"} }))).To(Succeed())
		added := envoy.take(cluster)
		Expect(names(added)).To(ConsistOf("new@use1_use2_usw2"))
		envoy.subscribe(endpoint, "new@use1_use2_usw2")
		envoy.take(endpoint)
		routes := string(byName(envoy.take(route))["tenants"])
		Expect(routes).To(And(ContainSubstring(`"new@use1_use2_usw2"`), Not(ContainSubstring(`"tiny@`))))
	})

	It("choose who takes over, and where it may", func() {
		server, _ := begin()
		Expect(weights(server)).To(HaveKey("use2-0"))
		Expect(server.SetSettings(now(func(s *xds.Settings) { s.SpillTo = map[fleet.Region][]fleet.Region{"use1": {"usw2"}} }))).To(Succeed())
		Eventually(func() map[string][]any { return get[map[string]map[string][]any](server, "/weights")["use1"] }).Should(And(HaveKey(model+"@use1_usw2"), Not(HaveKey(modelCluster))))
	})

	DescribeTable("are refused, and those before stay", func(change func(*xds.Settings), reason string) {
		server, envoy := begin()
		Expect(server.SetSettings(now(change))).To(MatchError(ContainSubstring(reason)))
		Consistently(envoy.responses, "100ms").ShouldNot(Receive())
	},
		Entry("without a model", func(s *xds.Settings) { s.Models = nil }, "Models is empty"),
		Entry("with a negative duration", func(s *xds.Settings) { s.MessageTimeout = -1 }, "negative"),
		Entry("with a region that spills to itself", func(s *xds.Settings) { s.SpillTo = map[fleet.Region][]fleet.Region{"use1": {"use1"}} }, "itself"),
		Entry("with Envoys of another region", func(s *xds.Settings) {
			s.SpillTo = map[fleet.Region][]fleet.Region{"use1": nil, "use2": nil}
		}, "region use2 are not served since the start"),
	)
})

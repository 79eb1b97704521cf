package xds_test

import (
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

var _ = Describe("Models with versions", func() {
	versioned := func(id, address, version string) *fleet.Instance {
		in := readyInstance(id, "use1", address)
		in.Versions = map[string]string{model: version}
		return in
	}
	splits := func(v2 int) map[string]routing.Split {
		return map[string]routing.Split{model: {{Name: "v1", Weight: routing.SplitTotal - v2}, {Name: "v2", Weight: v2}}}
	}

	It("are weighed by share and score, and what is withdrawn is no endpoint", func() {
		server := startServer(testConfig())
		server.Update(snapshotOf(
			versioned("use1-0", "10.0.0.1:8080", "v1"), versioned("use1-1", "10.0.0.2:8080", "v1"), versioned("use1-2", "10.0.0.3:8080", "v2")))
		setCertificate(server)
		now := func() map[string]uint32 { return weights(server) }
		Eventually(now).Should(Equal(map[string]uint32{"use1-0": 100, "use1-1": 100, "use1-2": 100}))
		server.SetSplits(splits(100))
		Eventually(now).Should(Equal(map[string]uint32{"use1-0": 1350, "use1-1": 1350, "use1-2": 300}))
		server.SetSplits(splits(0))
		Eventually(now).Should(Equal(map[string]uint32{"use1-0": 1500, "use1-1": 1500}))
		server.SetSplits(splits(1000))
		// For Envoy use1-2 is not healthy yet.
		Eventually(now).Should(Equal(map[string]uint32{"use1-0": 1, "use1-1": 1, "use1-2": 3000}))
		Consistently(now, "2s").Should(HaveLen(3))
		Eventually(now, "10s").Should(Equal(map[string]uint32{"use1-2": 3000}))
		server.SetSplits(nil)
		Eventually(now).Should(Equal(map[string]uint32{"use1-0": 100, "use1-1": 100, "use1-2": 100}))
	})

	It("lose no endpoint before others are healthy, and keep none that is gone", func() {
		server := startServer(testConfig())
		v1, v2 := versioned("use1-0", "10.0.0.1:8080", "v1"), versioned("use1-1", "10.0.0.2:8080", "v2")
		server.Update(snapshotOf(v1, v2))
		setCertificate(server)
		server.SetSplits(splits(0))
		now := func() map[string]uint32 { return weights(server) }
		Eventually(now).Should(Equal(map[string]uint32{"use1-0": 2000}))
		server.SetSplits(splits(1000))
		Eventually(now).Should(Equal(map[string]uint32{"use1-0": 1, "use1-1": 2000}))
		server.SetSplits(splits(0)) // at once: Envoy may not have checked the other yet
		Eventually(now).Should(Equal(map[string]uint32{"use1-0": 2000}))
		server.SetSplits(splits(1000))
		Eventually(now).Should(HaveLen(2))
		server.Update(snapshotOf(v2))
		Eventually(now).Should(Equal(map[string]uint32{"use1-1": 1000}))
	})
})

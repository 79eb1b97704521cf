package xds_test

import (
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/xds"
)

var _ = Describe("Weights", func() {
	var (
		score  atomic.Uint32
		server *xds.Server
		first  = readyInstance("use1-0", "use1", "10.0.0.1:8080")
		second = readyInstance("use1-1", "use1", "10.0.0.2:8080")
	)
	start := func(interval time.Duration, at uint32) {
		GinkgoHelper()
		score.Store(at)
		config := testConfig()
		config.WeightInterval = interval
		config.Weight = func(*fleet.Instance) uint32 { return score.Load() }
		server = startServer(config)
		server.Update(snapshotOf(first))
		setCertificate(server)
		Eventually(server.Ready).Should(Succeed())
	}
	rescore := func(now uint32) {
		score.Store(now)
		server.Rescored()
	}
	weightOf := func(id string) func() uint32 { return func() uint32 { return weights(server)[id] } }

	It("follow scores without any news of the fleet, a whole step at a time", func() {
		start(time.Millisecond, 52)
		Expect(weightOf("use1-0")()).To(BeEquivalentTo(50))
		for _, step := range []struct{ score, weight uint32 }{{55, 55}, {0, 1}, {6, 5}, {100, 100}} {
			rescore(step.score)
			Eventually(weightOf("use1-0")).Should(Equal(step.weight))
		}
		for _, near := range []uint32{96, 99, 97} {
			rescore(near)
			Consistently(weightOf("use1-0"), "30ms").Should(BeEquivalentTo(100))
		}
		rescore(95)
		Eventually(weightOf("use1-0")).Should(BeEquivalentTo(95))
	})

	It("wait for their interval, whatever the fleet does meanwhile", func() {
		start(time.Hour, 100)
		rescore(50)
		server.Update(snapshotOf(first, second))
		Eventually(weightOf("use1-1")).Should(BeEquivalentTo(50), "who is new has waited for nothing")
		Expect(weightOf("use1-0")()).To(BeEquivalentTo(100))
		page := get[struct {
			Instances []struct{ Score, Weight uint32 }
		}](server, "/fleet")
		Expect(page.Instances[0]).To(And(HaveField("Score", BeEquivalentTo(50)), HaveField("Weight", BeEquivalentTo(100))))
	})

	It("are pushed seldom, and the last ones always", func() {
		start(50*time.Millisecond, 100)
		envoy := dialer(server)("e1", "use1")
		envoy.settle()
		began, pushes := time.Now(), 0
		for i := uint32(0); time.Since(began) < 200*time.Millisecond; i++ {
			rescore(20 + i*10%80)
			select {
			case resp := <-envoy.responses:
				pushes++
				envoy.ack(resp)
			default:
			}
		}
		Expect(pushes).To(BeNumerically("<=", 1+time.Since(began)/(50*time.Millisecond)))
		rescore(10)
		Eventually(func() uint32 {
			select {
			case resp := <-envoy.responses:
				envoy.ack(resp)
			default:
			}
			return weights(server)["use1-0"]
		}).Should(BeEquivalentTo(10))
	})
})

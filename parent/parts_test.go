package parent_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mrgc/mrgc/internal/gpu"
	"github.com/mrgc/mrgc/internal/loadreport"
	"github.com/mrgc/mrgc/parent"
)

// partsOf gives what a parent publishes of its instance's parts.
func partsOf(registry *prometheus.Registry) func() map[string]float64 {
	return func() map[string]float64 {
		GinkgoHelper()
		families, err := registry.Gather()
		Expect(err).NotTo(HaveOccurred())
		parts := map[string]float64{}
		for _, family := range families {
			if family.GetName() != "mrgc_parent_part_healthy" {
				continue
			}
			for _, m := range family.GetMetric() {
				for _, label := range m.GetLabel() {
					if label.GetName() == "part" {
						parts[label.GetValue()] = m.GetGauge().GetValue()
					}
				}
			}
		}
		return parts
	}
}

var _ = Describe("An instance's part", func() {
	It("is told of by itself, where there is one", func(ctx SpecContext) {
		registry := prometheus.NewRegistry()
		in := start(func(c *parent.Config) { c.Metrics = registry })
		Eventually(ctx, partsOf(registry)).Should(Equal(map[string]float64{"enclave": 1, "engine": 1}))
		in.guard.sick.Store(true)
		Eventually(ctx, partsOf(registry)).Should(Equal(map[string]float64{"enclave": 1, "engine": 0}))
		in.guard.sick.Store(false)
		in.enclave.stop()
		Eventually(ctx, partsOf(registry)).Should(Equal(map[string]float64{"enclave": 0, "engine": 1}))
	}, NodeTimeout(specTimeout))

	It("that is a GPU takes the instance out when it is lost, and not for a reading that fails", func(ctx SpecContext) {
		registry := prometheus.NewRegistry()
		var fault atomic.Pointer[error]
		in := start(func(c *parent.Config) {
			c.Metrics = registry
			c.ReadGPU = func() (loadreport.GPU, error) {
				if err := fault.Load(); err != nil {
					return loadreport.GPU{}, *err
				}
				return loadreport.GPU{Utilization: 0.5}, nil
			}
		})
		in.eventuallyRegistered(ctx, healthy())
		Eventually(ctx, partsOf(registry)).Should(HaveKeyWithValue("gpu", 1.0))
		fails := func(err error) { fault.Store(&err) }

		fails(errors.New("memory of GPU 0: no permission"))
		Eventually(ctx, partsOf(registry)).Should(HaveKeyWithValue("gpu", 0.0))
		fails(fmt.Errorf("%w: memory of GPU 0", gpu.ErrLost))
		in.eventuallyRegistered(ctx, health(true, false, "GPU: a GPU is lost", "GPU 0"))
		fails(errors.New("memory of GPU 0: no permission"))
		in.eventuallyRegistered(ctx, healthy())
		fault.Store(nil)
		Eventually(ctx, partsOf(registry)).Should(HaveKeyWithValue("gpu", 1.0))
	}, NodeTimeout(specTimeout))

	It("that is its model's files is told of, and the instance serves on", func(ctx SpecContext) {
		registry := prometheus.NewRegistry()
		var gone atomic.Bool
		in := start(func(c *parent.Config) {
			c.Metrics = registry
			c.ModelFiles = &parent.ModelFiles{Every: 10 * time.Millisecond, Look: func() error {
				if gone.Load() {
					return errors.New("/models/a: no such file")
				}
				return nil
			}}
		})
		in.eventuallyRegistered(ctx, healthy())
		Eventually(ctx, partsOf(registry)).Should(HaveKeyWithValue("model_files", 1.0))
		gone.Store(true)
		in.eventuallyRegistered(ctx, health(true, true, "model's files: /models/a: no such file"))
		Expect(partsOf(registry)()).To(HaveKeyWithValue("model_files", 0.0))
		Expect(readAll(in.send(in.sealed(ctx, "request")))).To(Equal("sealed answer"))
		gone.Store(false)
		in.eventuallyRegistered(ctx, healthy())
	}, NodeTimeout(specTimeout))

	It("that hangs, as a mount does whose server is gone, is looked at by nobody else meanwhile", func(ctx SpecContext) {
		var looks atomic.Int64
		mount := make(chan struct{})
		in := start(func(c *parent.Config) {
			c.ModelFiles = &parent.ModelFiles{Every: 10 * time.Millisecond, Timeout: 20 * time.Millisecond, Look: func() error {
				looks.Add(1)
				<-mount
				return nil
			}}
		})
		in.eventuallyRegistered(ctx, health(true, true, "model's files: no answer within 20ms"))
		Expect(looks.Load()).To(Equal(int64(1)))
		close(mount)
		in.eventuallyRegistered(ctx, healthy())
		Eventually(ctx, looks.Load).Should(BeNumerically(">", 1))
	}, NodeTimeout(specTimeout))
})

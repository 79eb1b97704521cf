package gpu_test

import (
	"errors"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/gpu"
	"github.com/mrgc/mrgc/internal/loadreport"
)

func TestGPU(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "gpu")
}

var _ = Describe("The GPUs of an instance", func() {
	DescribeTable("are read as one", func(want loadreport.GPU, readings ...[4]uint64) {
		got := gpu.Sum(readings...)
		Expect(got).To(Equal(want))
		Expect(got.Validate()).To(Succeed())
	},
		Entry("of one", loadreport.GPU{Utilization: 0.5, Memory: 0.75, TemperatureC: 61}, [4]uint64{50, 60 << 30, 80 << 30, 61}),
		Entry("of two that differ", loadreport.GPU{Utilization: 0.5, Memory: 0.25, TemperatureC: 70},
			[4]uint64{100, 30 << 30, 40 << 30, 70}, [4]uint64{0, 0, 80 << 30, 30}),
		Entry("of three that do all they can", loadreport.GPU{Utilization: 1, Memory: 1, TemperatureC: 90},
			[4]uint64{100, 1, 1, 90}, [4]uint64{100, 1, 1, 90}, [4]uint64{100, 1, 1, 90}),
		Entry("of none", loadreport.GPU{}),
	)

	// With -tags nvml on a machine that has a GPU, this is the test of NVML; else
	// it is the test of being without.
	It("say plausible things, where there are any", func() {
		device, err := gpu.Open()
		if errors.Is(err, gpu.ErrNone) {
			Skip(err.Error())
		}
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(device.Close)
		for range 10 {
			got, err := device.Read()
			Expect(err).NotTo(HaveOccurred())
			Expect(got.Validate()).To(Succeed())
			Expect(got.TemperatureC).To(BeNumerically("~", 55, 50), "degrees Celsius of a GPU that is on")
			Expect(got.Memory).To(BeNumerically(">", 0), "the driver keeps some")
			AddReportEntry("GPU", got)
		}
	})
})

func BenchmarkRead(b *testing.B) {
	device, err := gpu.Open()
	if err != nil {
		b.Skip(err)
	}
	defer device.Close()
	for b.Loop() {
		if _, err := device.Read(); err != nil {
			b.Fatal(err)
		}
	}
}

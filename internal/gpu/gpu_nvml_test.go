//go:build cgo && nvml

package gpu_test

import (
	"errors"
	"os/exec"
	"strconv"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/gpu"
	"github.com/mrgc/mrgc/internal/loadreport"
)

var _ = Describe("NVML's reading", func() {
	It("is what nvidia-smi says", func(ctx SpecContext) {
		device, err := gpu.Open()
		if errors.Is(err, gpu.ErrNone) {
			Skip(err.Error())
		}
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(device.Close)
		// Load comes and goes between two readings: one of several pairs agrees.
		Eventually(ctx, func(g Gomega) {
			got, err := device.Read()
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(got.Validate()).To(Succeed())
			out, err := exec.CommandContext(ctx, "nvidia-smi", "--format=csv,noheader,nounits",
				"--query-gpu=utilization.gpu,memory.used,memory.total,temperature.gpu").Output()
			g.Expect(err).NotTo(HaveOccurred())
			want := gpu.Sum(readingsOf(g, string(out))...)
			AddReportEntry("reading", loadreport.GPU(got))
			g.Expect(got.Utilization).To(BeNumerically("~", want.Utilization, 0.1))
			g.Expect(got.Memory).To(BeNumerically("~", want.Memory, 0.01))
			g.Expect(got.TemperatureC).To(BeNumerically("~", want.TemperatureC, 3))
		}, "20s", "200ms").Should(Succeed())
	})
})

// readingsOf parses nvidia-smi's lines: per cent, MiB, MiB, °C.
func readingsOf(g Gomega, csv string) (readings [][4]uint64) {
	for line := range strings.Lines(csv) {
		var reading [4]uint64
		fields := strings.Split(strings.TrimSpace(line), ", ")
		g.Expect(fields).To(HaveLen(4), line)
		for i, field := range fields {
			n, err := strconv.ParseUint(field, 10, 64)
			g.Expect(err).NotTo(HaveOccurred())
			reading[i] = n
		}
		reading[1], reading[2] = reading[1]<<20, reading[2]<<20
		readings = append(readings, reading)
	}
	g.Expect(readings).NotTo(BeEmpty())
	return readings
}

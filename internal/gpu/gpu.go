// Package gpu reads an instance's GPUs for its load reports, and clears their
// memory ([ClearAll]) when no engine runs.
//
//	device, err := gpu.Open()
//	if err != nil {
//		log.Info("no GPU is seen; load reports go without one", "reason", err)
//	} else {
//		defer device.Close()
//		config.ReadGPU = device.Read
//	}
//
// It asks NVIDIA's management library (NVML), which comes with the driver and
// is loaded when Open is called. That takes cgo and the build tag nvml (make
// build-gpu); a program that is built without them sees no GPU, and neither does
// one on a machine that has none. It never changes a GPU's settings. A reading takes some 5 µs (BenchmarkRead, on an
// H200 with driver 580).
package gpu

import (
	"errors"

	"github.com/mrgc/mrgc/internal/loadreport"
)

// ErrNone is the error where there is no GPU to see: none in the machine, no
// driver, or a program that was built without NVML and CUDA.
var ErrNone = errors.New("no GPU is seen")

// ErrLost is the error of Read when a GPU is there no more, or does nothing until it is
// reset: NVML says so of one that has fallen off its bus or has had an error that cannot
// be corrected. What runs on it does not come back by itself.
var ErrLost = errors.New("a GPU is lost")

// device is one GPU's reading, as NVML gives it.
type device struct {
	busyPercent             uint32
	memoryUsed, memoryTotal uint64 // bytes
	temperatureC            uint32
}

// sum puts the readings of all GPUs into one: the mean of how busy they are,
// the memory of all, the temperature of the hottest.
func sum(devices []device) loadreport.GPU {
	var (
		all         loadreport.GPU
		used, total uint64
	)
	for _, d := range devices {
		all.Utilization += float64(d.busyPercent) / 100 / float64(len(devices))
		used += d.memoryUsed
		total += d.memoryTotal
		all.TemperatureC = max(all.TemperatureC, float64(d.temperatureC))
	}
	all.Utilization = min(all.Utilization, 1) // thirds add up to more
	if total > 0 {
		all.Memory = float64(used) / float64(total)
	}
	return all
}

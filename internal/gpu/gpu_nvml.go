//go:build cgo && nvml

package gpu

import (
	"fmt"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/mrgc/mrgc/internal/loadreport"
)

// Device is the instance's GPUs. It may not be used by two goroutines at once,
// nor after Close.
type Device struct {
	library nvml.Interface
	handles []nvml.Device
}

// Open loads NVML and finds the GPUs. Its error is [ErrNone] where there is
// nothing to find, and another where there is something that cannot be had.
func Open() (*Device, error) {
	d := &Device{library: nvml.New()}
	switch result := d.library.Init(); result {
	case nvml.SUCCESS:
	case nvml.ERROR_LIBRARY_NOT_FOUND, nvml.ERROR_DRIVER_NOT_LOADED:
		return nil, fmt.Errorf("%w: %w", ErrNone, result)
	default:
		return nil, fmt.Errorf("start NVML: %w", result)
	}
	if err := d.find(); err != nil {
		_ = d.Close() // the error at hand says more
		return nil, err
	}
	return d, nil
}

func (d *Device) find() error {
	count, result := d.library.DeviceGetCount()
	if result != nvml.SUCCESS {
		return fmt.Errorf("count GPUs: %w", result)
	}
	if count == 0 {
		return fmt.Errorf("%w: NVML knows of none", ErrNone)
	}
	for i := range count {
		handle, result := d.library.DeviceGetHandleByIndex(i)
		if result != nvml.SUCCESS {
			return fmt.Errorf("GPU %d: %w", i, result)
		}
		d.handles = append(d.handles, handle)
	}
	return nil
}

// Read asks every GPU. One that cannot be read is an error of all: half a
// reading would look like a load that it is not.
func (d *Device) Read() (loadreport.GPU, error) {
	devices := make([]device, len(d.handles))
	for i, handle := range d.handles {
		busy, result := handle.GetUtilizationRates()
		if result != nvml.SUCCESS {
			return loadreport.GPU{}, failed("utilization", i, result)
		}
		memory, result := handle.GetMemoryInfo()
		if result != nvml.SUCCESS {
			return loadreport.GPU{}, failed("memory", i, result)
		}
		temperature, result := handle.GetTemperature(nvml.TEMPERATURE_GPU)
		if result != nvml.SUCCESS {
			return loadreport.GPU{}, failed("temperature", i, result)
		}
		devices[i] = device{
			busyPercent: busy.Gpu, memoryUsed: memory.Used, memoryTotal: memory.Total, temperatureC: temperature,
		}
	}
	return sum(devices), nil
}

// failed is the error of a reading.
func failed(what string, i int, result nvml.Return) error {
	switch result {
	case nvml.ERROR_GPU_IS_LOST, nvml.ERROR_GPU_NOT_FOUND, nvml.ERROR_RESET_REQUIRED, nvml.ERROR_DRIVER_NOT_LOADED:
		return fmt.Errorf("%w: %s of GPU %d: %w", ErrLost, what, i, result)
	default:
		return fmt.Errorf("%s of GPU %d: %w", what, i, result)
	}
}

// Close lets NVML go.
func (d *Device) Close() error {
	if result := d.library.Shutdown(); result != nvml.SUCCESS {
		return fmt.Errorf("stop NVML: %w", result)
	}
	return nil
}

//go:build !cgo || !nvml

package gpu

import (
	"fmt"

	"github.com/mrgc/mrgc/internal/loadreport"
)

// Device is the instance's GPUs.
type Device struct{}

// Open gives [ErrNone]: this program was built without NVML.
func Open() (*Device, error) {
	return nil, fmt.Errorf("%w: this program was built without NVML; build it with cgo and -tags nvml", ErrNone)
}

// Read gives [ErrNone].
func (*Device) Read() (loadreport.GPU, error) { return loadreport.GPU{}, ErrNone }

// Close does nothing.
func (*Device) Close() error { return nil }

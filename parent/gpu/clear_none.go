//go:build !cgo || !nvml

package gpu

import "fmt"

// Clear gives [ErrNone]: this program was built without CUDA.
func Clear(_ int, canary []byte) (Cleared, error) {
	if err := checkCanary(canary); err != nil {
		return Cleared{}, err
	}
	return Cleared{}, fmt.Errorf("%w: this program was built without CUDA; build it with cgo and -tags nvml", ErrNone)
}

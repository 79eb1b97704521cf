//go:build !cgo || !nvml

package gpu

import "fmt"

var errBuiltWithout = fmt.Errorf("%w: this program was built without CUDA; build it with cgo and -tags nvml", ErrNone)

// Clear gives [ErrNone]: this program was built without CUDA.
func Clear(_ int, canary []byte) (Cleared, error) {
	if err := checkCanary(canary); err != nil {
		return Cleared{}, err
	}
	return Cleared{}, errBuiltWithout
}

func count() (int, error) { return 0, errBuiltWithout }

func free(int) (free, total uint64, err error) { return 0, 0, errBuiltWithout }

// CanClear says whether this program was built to clear GPUs; if it was not, the
// error is [ErrNone].
func CanClear() error { return errBuiltWithout }

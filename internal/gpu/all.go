package gpu

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"
)

// neededCoverage is how much of a GPU's memory has to be overwritten: the rest is
// the driver's, and the context's that overwrites.
const neededCoverage = 0.9

// Bounds on waiting for memory: the driver takes a moment to have that of a process
// back that was killed.
const (
	freePatience = 2 * time.Minute
	freePoll     = 500 * time.Millisecond
)

// ClearAll clears all GPUs that CUDA sees ([Clear]), one after the other, and says
// what it found in each. It waits up to two minutes for each one's memory to be
// free. Whatever is left is an error: a GPU of which less than nine tenths could be
// overwritten, because a process still has some; a byte that is not zero
// afterwards; no GPU at all ([ErrNone]).
//
// CUDA leaves out what the environment's CUDA_VISIBLE_DEVICES leaves out, and sees
// one part of a GPU that is divided (MIG).
func ClearAll(ctx context.Context) ([]Cleared, error) {
	return clearAll(ctx, machine{count, free, Clear, freePoll}, freePatience)
}

// machine is what CUDA says and does.
type machine struct {
	count func() (int, error)
	free  func(index int) (free, total uint64, err error)
	clear func(index int, canary []byte) (Cleared, error)
	poll  time.Duration
}

func clearAll(ctx context.Context, m machine, patience time.Duration) ([]Cleared, error) {
	n, err := m.count()
	if err != nil {
		return nil, fmt.Errorf("clear GPU memory: %w", err)
	}
	if n == 0 {
		return nil, fmt.Errorf("clear GPU memory: %w: CUDA counts none", ErrNone)
	}
	// What runs before leaves words that are not known here. This one would be found
	// if the search read what it has written itself.
	canary := make([]byte, 2*minCanaryBytes)
	_, _ = rand.Read(canary) // never fails (crypto/rand)
	all := make([]Cleared, n)
	for i := range n {
		began := time.Now()
		if all[i], err = m.clearOne(ctx, i, canary, patience); err != nil {
			return nil, fmt.Errorf("GPU %d: %w", i, err)
		}
		all[i].Took = time.Since(began)
	}
	return all, nil
}

// clearOne waits until a GPU's memory is free, and clears it.
func (m machine) clearOne(ctx context.Context, index int, canary []byte, patience time.Duration) (Cleared, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for last := uint64(0); ; {
		free, total, err := m.free(index)
		if err != nil {
			return Cleared{}, err
		}
		short := fmt.Sprintf("%d of %d bytes are free", free, total)
		if settled(last, free, total) {
			cleared, err := m.clear(index, canary)
			if err != nil || cleared.Coverage() >= neededCoverage {
				return cleared, err
			}
			short = fmt.Sprintf("%d of %d bytes could be overwritten", cleared.ClearedBytes, cleared.TotalBytes)
		}
		last = free
		select {
		case <-ctx.Done():
			return Cleared{}, fmt.Errorf("clear GPU memory: %s after %s: %.0f %% are needed, and a process has the rest still: %w", short, patience, 100*neededCoverage, ctx.Err())
		case <-time.After(m.poll):
		}
	}
}

// settled says whether so much is free that clearing is worth the while, and no
// more comes back.
func settled(last, free, total uint64) bool {
	return free == last && float64(free) >= neededCoverage*float64(total)
}

package parent

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// What an instance is made of, as mrgc_parent_part_healthy names it. Without the first
// three it takes no requests. Without its model's files it serves on, with what the
// engine has loaded: they are on a file system that a region's instances share, and to
// take all of them out would make an outage of the region's disk one of the region.
const (
	partEnclave    = "enclave"
	partEngine     = "engine"
	partGPU        = "gpu"
	partModelFiles = "model_files"
)

// ModelFiles is how the files that a model is loaded from are looked at.
type ModelFiles struct {
	// Look says what is wrong with them. It may hang, as file systems do whose
	// server is gone: it is not called again before it has returned.
	Look func() error
	// Every is how often, and Timeout how long a look may take before the files
	// are taken for gone; default 30 s and 10 s.
	Every, Timeout time.Duration
}

// modelFiles is what was seen of them.
type modelFiles struct {
	mu    sync.Mutex
	fault string // guarded by mu; empty: nothing is wrong, as far as is known
}

func (m *modelFiles) get() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fault
}

func (m *modelFiles) set(fault string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = fault
}

// watchModelFiles looks at the model's files until ctx ends. A look that hangs then is
// left behind: nothing ends it but the file system, or this process.
func (p *Parent) watchModelFiles(ctx context.Context) {
	watch := p.config.ModelFiles
	ticker := time.NewTicker(watch.Every)
	defer ticker.Stop()
	var looking chan error // nil: nobody does
	for {
		if looking == nil {
			looking = make(chan error, 1)
			go func() { looking <- watch.Look() }()
		}
		late := time.NewTimer(watch.Timeout)
		select {
		case err := <-looking:
			looking = nil
			fault := ""
			if err != nil {
				fault = err.Error()
			}
			p.files.set(fault)
		case <-late.C:
			p.files.set(fmt.Sprintf("no answer within %s", watch.Timeout))
		case <-ctx.Done():
		}
		late.Stop()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

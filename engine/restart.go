package engine

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/mrgc/mrgc/engine/supervisor"
)

// readyPoll is how often an engine that starts is asked, and askTimeout how long it
// may take to answer that.
const (
	readyPoll  = 100 * time.Millisecond
	askTimeout = 5 * time.Second
)

// restart has the engine restarted, and waits until it answers. The canary stays
// planted: an engine that was not restarted still has it.
func (w *washer) restart(ctx context.Context) (string, error) {
	if w.control == "" {
		return "", errors.New("the engine cannot be restarted: its guard has no --engine-control")
	}
	began := time.Now()
	done, err := supervisor.Restart(ctx, w.control)
	w.guard.cache.restarted()
	if err != nil {
		return "", err
	}
	if err := w.awaitEngine(ctx); err != nil {
		return "", err
	}
	return restartDetail(done, time.Since(began)), nil
}

// awaitEngine waits until the engine is well and names a model.
func (w *washer) awaitEngine(ctx context.Context) error {
	late := fmt.Errorf("the engine was restarted and does not answer within %s", w.guard.cfg.ReadyTimeout)
	ctx, cancel := context.WithTimeoutCause(ctx, w.guard.cfg.ReadyTimeout, late)
	defer cancel()
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for !w.answers(ctx) {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
	return nil
}

// answers asks the engine once. One without a health path, which is not part of
// OpenAI's API, is there when it lists its models.
func (w *washer) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.guard.base+"/health", nil)
	if err != nil {
		return false
	}
	resp, err := w.guard.upstream.RoundTrip(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNotFound {
		return false
	}
	_, err = w.model(ctx)
	return err == nil
}

// restartDetail says what a restart has done, which took until the engine answered.
func restartDetail(done supervisor.Restarted, took time.Duration) string {
	var said strings.Builder
	seconds := func(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
	gib := func(bytes uint64) float64 { return float64(bytes) / (1 << 30) }
	_, _ = fmt.Fprintf(&said, "engine stopped in %s", seconds(done.Stopped))
	if done.Killed {
		_, _ = said.WriteString(", killed as it did not end when asked to")
	}
	for i, g := range done.GPUs {
		_, _ = fmt.Fprintf(&said, ", %.1f of %.1f GiB of GPU %d overwritten and read back as zeros in %s (%d bytes were not zero)",
			gib(g.ClearedBytes), gib(g.TotalBytes), i, seconds(g.Took), g.DirtyBytes)
	}
	if len(done.GPUs) == 0 {
		_, _ = said.WriteString(", no GPU memory was overwritten")
	}
	_, _ = fmt.Fprintf(&said, ", answered again after %s", seconds(took))
	return said.String()
}

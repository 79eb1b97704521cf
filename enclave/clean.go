package enclave

import (
	"context"
	"io"
	"net/http"
	"runtime"
	"time"
)

// cleaner has what requests left in memory overwritten. The enclave's own buffers
// are wiped as each request ends; beside them there are copies that no code of
// ours can reach, in TLS connections and in net/http's and encoding/json's pools.
// Those become garbage here, and a program that runs with
// [lockdown.OverwriteFreed] has the collector overwrite garbage.
//
// It does not reach goroutines' stacks, on which there may be a hash's last block,
// nor a connection that a later request is using just then: that one's buffers go
// when a round finds it idle.
type cleaner struct {
	config *Config
	dirty  chan struct{} // holds one: a request has ended, or its connection is idle, since the last round
}

func newCleaner(config *Config) *cleaner {
	return &cleaner{config: config, dirty: make(chan struct{}, 1)}
}

// ended says that a request has ended, or that the connection which it had to the
// engine is idle: net/http may have it for idle only some time after the answer's end.
func (c *cleaner) ended() {
	select {
	case c.dirty <- struct{}{}:
	default: // the next round is for it, too
	}
}

// run cleans after requests, until ctx ends, and twice: what net/http gives up by
// itself, such as a connection that was cut, it gives up some time after the answer's
// end, and the round in between misses it. A round comes half of CleanWithin after the one before, at the
// soonest: under steady load that bounds what it costs.
func (c *cleaner) run(ctx context.Context) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	again := false
	for {
		if !again {
			select {
			case <-ctx.Done():
				return
			case <-c.dirty:
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		select { // those that have ended by now are this round's, and the next one's
		case <-c.dirty:
			again = true
		default:
			again = !again
		}
		c.clean(ctx)
		pause.Reset(c.config.CleanWithin / 2)
	}
}

// clean drops connections to the engine that no request uses, with their buffers,
// and collects twice: pools give up what they hold in the second collection only.
// Then it makes a connection for the next request, which would else wait for a
// handshake.
func (c *cleaner) clean(ctx context.Context) {
	if pool, ok := c.config.Engine.(interface{ CloseIdleConnections() }); ok {
		pool.CloseIdleConnections()
	}
	runtime.GC()
	runtime.GC()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://guard/health", nil)
	if err != nil {
		return
	}
	if resp, err := c.config.Engine.RoundTrip(req); err == nil { // what it says is the parent's to ask
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10))
		_ = resp.Body.Close()
	}
}

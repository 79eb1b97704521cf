package enclave

import (
	"context"
	"io"
	"net/http"
	"net/http/httptrace"
	"runtime"
	"sync/atomic"
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
	dirty  chan struct{} // holds one: a request has ended since the last round
}

func newCleaner(config *Config) *cleaner {
	return &cleaner{config: config, dirty: make(chan struct{}, 1)}
}

// ended says that a request has ended.
func (c *cleaner) ended() {
	select {
	case c.dirty <- struct{}{}:
	default: // the next round is for it, too
	}
}

// rounds are how long after the one before each round comes that follows a request, in
// parts of CleanWithin. Two, because net/http has a connection for idle only some time
// after its answer has ended; that a connection has become so later than that is said,
// too ([cleaner.traced]). The last is for what nobody says: a connection that was cut is
// garbage when net/http's goroutines have ended, which on a busy machine takes a while.
var rounds = []float64{0.5, 0.5, 4}

// run cleans after requests, until ctx ends. A round comes half of CleanWithin after
// the one before, at the soonest: under steady load that bounds what it costs.
func (c *cleaner) run(ctx context.Context) {
	next := time.NewTimer(0) // the next round is due, if there is anything to clean
	defer next.Stop()
	soonest := time.Now()
	for made := len(rounds); ; { // rounds since the last request
		due := next.C
		if made == len(rounds) {
			due = nil
		}
		select {
		case <-ctx.Done():
			return
		case <-c.dirty:
			if made != 0 {
				made = 0
				next.Reset(time.Until(soonest))
			}
			continue
		case <-due:
		}
		select { // those that have ended by now are this round's, and the next one's
		case <-c.dirty:
			made = 0
		default:
		}
		c.clean(ctx)
		made++
		soonest = time.Now().Add(c.config.CleanWithin / 2)
		if made < len(rounds) {
			next.Reset(time.Duration(float64(c.config.CleanWithin) * rounds[made]))
		}
	}
}

// traced has a request's connection cleaned when it becomes idle, however long after the
// answer's end that is: else it would keep its buffers until the next request's end. It
// calls wrote when all of the request has been written, which net/http does not write
// again after that: it is no request that may be repeated (net/http.Transport).
func (c *cleaner) traced(ctx context.Context, gotConn, wrote func()) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { gotConn() },
		WroteRequest: func(info httptrace.WroteRequestInfo) {
			if info.Err == nil {
				wrote()
			}
		},
		PutIdleConn: func(error) { c.ended() },
	})
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
	// One that has become idle just now has another request's buffers still.
	var reused atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(got httptrace.GotConnInfo) { reused.Store(got.Reused) },
		PutIdleConn: func(error) {
			if reused.Load() {
				c.ended()
			}
		},
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://guard/health", nil)
	if err != nil {
		return
	}
	if resp, err := c.config.Engine.RoundTrip(req); err == nil { // what it says is the parent's to ask
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10))
		_ = resp.Body.Close()
	}
}

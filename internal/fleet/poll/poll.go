// Package poll makes watches of a fleet store that can only be asked: what
// [fleet.Store] promises of Watch, for a store that does not call back.
//
//	func (s *Store) Watch(ctx context.Context) <-chan *fleet.Snapshot {
//		return s.watches.Start(ctx, poll.Watch{Interval: time.Second, Poll: s.poll, Log: s.log})
//	}
//
// It decides when to ask, how long to leave alone a store that does not answer,
// what is logged of that, and which snapshots nobody needs any more. What has
// changed is for the store to say.
package poll

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
)

// Watch is how one watch reads its store.
type Watch struct {
	// Interval between two polls, and so how late a change is seen at most.
	Interval time.Duration
	// Poll gives a snapshot when there is a new one to send, else nil. It is
	// called by one goroutine.
	Poll func(context.Context) (*fleet.Snapshot, error)
	// Stop is called after the last poll. nil: nothing is.
	Stop func()
	// Log hears when the store cannot be read, and when it can again.
	Log *slog.Logger
}

// Watches are the watches of one store.
type Watches struct {
	life context.Context // ends with Close, and ends the watches
	end  context.CancelFunc

	mu      sync.Mutex // lets no watch start while Close waits
	running sync.WaitGroup
}

// NewWatches makes the watches of a store: none yet.
func NewWatches() *Watches {
	w := &Watches{}
	w.life, w.end = context.WithCancel(context.Background())
	return w
}

// Start polls until ctx ends or the store closes. A snapshot that nobody has
// taken is replaced by the next: the channel is unbuffered, so no old one waits
// in it. After Close the channel is closed from the start.
func (w *Watches) Start(ctx context.Context, watch Watch) <-chan *fleet.Snapshot {
	out := make(chan *fleet.Snapshot)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.life.Err() != nil {
		close(out)
		return out
	}
	ctx, cancel := context.WithCancel(ctx)
	unhook := context.AfterFunc(w.life, cancel)
	w.running.Go(func() {
		defer close(out)
		defer unhook()
		defer cancel()
		watch.run(ctx, out)
	})
	return out
}

// Close ends the watches and waits for them.
func (w *Watches) Close() {
	w.mu.Lock()
	w.end()
	w.mu.Unlock()
	w.running.Wait()
}

func (w Watch) run(ctx context.Context, out chan<- *fleet.Snapshot) {
	if w.Stop != nil {
		defer w.Stop()
	}
	var (
		newest *fleet.Snapshot
		send   chan<- *fleet.Snapshot // nil, and so never ready, while there is nothing to send
		outage outage
		timer  = time.NewTimer(0)
	)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case send <- newest:
			newest, send = nil, nil
		case <-timer.C:
			snapshot, err := w.Poll(ctx)
			if ctx.Err() != nil {
				return
			}
			if snapshot != nil {
				newest, send = snapshot, out
			}
			outage.tell(ctx, w.Log, err)
			timer.Reset(outage.wait(w.Interval))
		}
	}
}

// outage is how often in a row the store could not be read.
type outage int

// tell counts a poll, and logs when an outage begins and when it ends.
func (o *outage) tell(ctx context.Context, log *slog.Logger, err error) {
	switch {
	case err == nil && *o > 0:
		log.InfoContext(ctx, "fleet store can be read again")
	case err != nil && *o == 0:
		log.WarnContext(ctx, "fleet store cannot be read, trying again", "error", err)
	}
	if err != nil {
		*o++
	} else {
		*o = 0
	}
}

// wait is twice as long with each failure in a row, up to
// [fleet.RefreshInterval] or the interval, whichever is longer.
func (o outage) wait(interval time.Duration) time.Duration {
	wait := interval
	for range o {
		if wait >= fleet.RefreshInterval {
			break
		}
		wait = min(2*wait, fleet.RefreshInterval)
	}
	return wait
}

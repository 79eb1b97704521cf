package poll_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/poll"
)

// These are plain tests because time is the bubble's: synctest does not know
// Ginkgo's goroutines.

func TestBacksOffFromAStoreThatCannotBeReadAndSaysSoOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewWithT(t)
		var (
			log   = gbytes.NewBuffer()
			start = time.Now()
			mu    sync.Mutex // guards what follows
			at    []time.Duration
			down  = true
		)
		watches := poll.NewWatches()
		snapshots := watches.Start(t.Context(), poll.Watch{
			Interval: time.Second,
			Poll: func(context.Context) (*fleet.Snapshot, error) {
				mu.Lock()
				defer mu.Unlock()
				at = append(at, time.Since(start))
				if down {
					return nil, errors.New("no power")
				}
				return fleet.NewSnapshot(time.Now(), nil), nil
			},
			Log: slog.New(slog.NewTextHandler(log, nil)),
		})
		time.Sleep(20 * time.Second) // of the bubble
		mu.Lock()
		g.Expect(at).To(Equal([]time.Duration{0, 2 * time.Second, 6 * time.Second, 11 * time.Second, 16 * time.Second}))
		down = false
		mu.Unlock()
		g.Expect(log).To(gbytes.Say("cannot be read.*no power.*\n"))
		g.Expect(log).NotTo(gbytes.Say("."))

		g.Expect((<-snapshots).At).To(Equal(start.Add(21 * time.Second)))
		g.Expect((<-snapshots).At).To(Equal(start.Add(22*time.Second)), "at its interval again")
		g.Expect(log).To(gbytes.Say("can be read again.*\n"))
		g.Expect(log).NotTo(gbytes.Say("."))
		watches.Close()
	})
}

func TestReplacesWhatNobodyHasTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewWithT(t)
		start := time.Now()
		watches := poll.NewWatches()
		snapshots := watches.Start(t.Context(), poll.Watch{
			Interval: time.Second,
			Poll:     func(context.Context) (*fleet.Snapshot, error) { return fleet.NewSnapshot(time.Now(), nil), nil },
			Log:      slog.New(slog.DiscardHandler),
		})
		time.Sleep(10*time.Second + time.Millisecond) // of the bubble
		g.Expect((<-snapshots).At).To(Equal(start.Add(10 * time.Second)))
		watches.Close()
	})
}

func TestEnds(t *testing.T) {
	for name, end := range map[string]func(cancel func(), watches *poll.Watches){
		"with its context": func(cancel func(), _ *poll.Watches) { cancel() },
		"with the store":   func(_ func(), watches *poll.Watches) { watches.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := NewWithT(t)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				stopped := false
				watches := poll.NewWatches()
				snapshots := watches.Start(ctx, poll.Watch{
					Interval: time.Second,
					Poll: func(ctx context.Context) (*fleet.Snapshot, error) {
						<-ctx.Done() // a store that does not answer
						return nil, ctx.Err()
					},
					Stop: func() { stopped = true },
					Log:  slog.New(slog.NewTextHandler(failingWriter{t}, nil)),
				})
				synctest.Wait()
				end(cancel, watches)
				g.Eventually(snapshots).Should(BeClosed())
				g.Expect(stopped).To(BeTrue())
				watches.Close()
				watches.Close()
				g.Expect(watches.Start(t.Context(), poll.Watch{})).To(BeClosed())
			})
		})
	}
}

// failingWriter fails the test for anything that is logged: an end is no outage.
type failingWriter struct{ t *testing.T }

func (w failingWriter) Write(line []byte) (int, error) {
	w.t.Errorf("logged: %s", line)
	return len(line), nil
}

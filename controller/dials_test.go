package controller_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/internal/fleet"
)

// slowAccelerator takes a second for each call, and may fail.
type slowAccelerator struct {
	mu    sync.Mutex // guards what follows
	dials map[fleet.Region]int
	gone  bool // no call is answered
	lost  bool // dials are set, and nobody is told
	calls []string
	began time.Time
}

// be changes what it is.
func (a *slowAccelerator) be(gone, lost bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gone, a.lost = gone, lost
}

// called gives the calls since it was asked last.
func (a *slowAccelerator) called() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	calls := a.calls
	a.calls, a.began = nil, time.Now()
	return calls
}

func (a *slowAccelerator) has(region fleet.Region) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.dials[region]
}

var errGone = errors.New("no answer")

func (a *slowAccelerator) call(ctx context.Context, what string) error {
	a.mu.Lock()
	a.calls = append(a.calls, fmt.Sprintf("%v %s", time.Since(a.began), what))
	takes, err := time.Second, error(nil)
	if a.gone {
		takes, err = 3*time.Second, errGone
	}
	a.mu.Unlock()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(takes):
		return err
	}
}

func (a *slowAccelerator) Dials(ctx context.Context) (map[fleet.Region]int, error) {
	if err := a.call(ctx, "read"); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.dials), nil
}

func (a *slowAccelerator) SetDial(ctx context.Context, id string, region fleet.Region, percent int) error {
	if err := a.call(ctx, fmt.Sprintf("%s %s=%d", id, region, percent)); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dials[region] = percent
	if a.lost {
		return errGone
	}
	return nil
}

// withDials runs a test with dials of a slow accelerator, in a time of its own. These
// are plain tests because synctest does not know Ginkgo's goroutines.
func withDials(t *testing.T, run func(g *WithT, a *slowAccelerator, d *controller.Dials)) {
	synctest.Test(t, func(t *testing.T) {
		g := NewWithT(t)
		a := &slowAccelerator{dials: map[fleet.Region]int{"use1": 100, "use2": 100, "usw2": 100}, began: time.Now()}
		d := controller.NewDials(a, slog.New(slog.DiscardHandler))
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { d.Run(ctx); close(ended) }()
		run(g, a, d)
		stop()
		<-ended
	})
}

// after lets so long go by, in the bubble's time, and then all who could do something.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestDialsAreReadWhenSomebodyAsks(t *testing.T) {
	withDials(t, func(g *WithT, a *slowAccelerator, d *controller.Dials) {
		after(time.Minute)
		g.Expect(a.called()).To(BeEmpty(), "nobody has asked")
		g.Expect(d.Known()).To(BeNil())
		after(time.Second)
		g.Expect(d.Known()).To(Equal(map[fleet.Region]int{"use1": 100, "use2": 100, "usw2": 100}))
		a.called()
		for range 20 {
			after(time.Second)
			g.Expect(d.Known()).NotTo(BeNil())
		}
		g.Expect(len(a.called())).To(BeNumerically("~", 4, 1), "each five seconds")
		a.be(true, false)
		after(10 * time.Second)
		g.Expect(d.Known()).NotTo(BeNil())
		after(10 * time.Second)
		g.Expect(d.Known()).To(BeNil(), "what was so that long ago may not be so")
	})
}

func TestDialsAreSetInOrderAndKnownAtOnce(t *testing.T) {
	withDials(t, func(g *WithT, a *slowAccelerator, d *controller.Dials) {
		d.Known()
		after(time.Second)
		a.called()
		asked := time.Now()
		g.Expect(d.Set("a-1", "use2", 100)).To(Succeed())
		g.Expect(d.Set("a-2", "use1", 50)).To(Succeed())
		g.Expect(d.Set("a-3", "use1", 0)).To(Succeed(), "in the place of what was to be set")
		g.Expect(time.Since(asked)).To(BeZero(), "nobody waits")
		g.Expect(d.Known()).To(HaveKeyWithValue(fleet.Region("use1"), 100), "it is not set yet")
		after(2 * time.Second)
		g.Expect(d.Known()).To(Equal(map[fleet.Region]int{"use1": 0, "use2": 100, "usw2": 100}))
		g.Expect(a.has("use1")).To(BeZero())
		g.Expect(a.called()).To(Equal([]string{"0s a-1 use2=100", "1s a-3 use1=0"}))
	})
}

func TestADialThatMayBeSetOrNotIsNotKnown(t *testing.T) {
	withDials(t, func(g *WithT, a *slowAccelerator, d *controller.Dials) {
		d.Known()
		after(time.Second)
		a.be(false, true)
		g.Expect(d.Set("a-1", "use1", 0)).To(Succeed())
		after(1500 * time.Millisecond)
		g.Expect(d.Known()).To(Equal(map[fleet.Region]int{"use2": 100, "usw2": 100}))
		after(time.Second)
		g.Expect(d.Known()).To(HaveKeyWithValue(fleet.Region("use1"), 0), "it is read before it is old")
	})
}

func TestADialThatCannotBeSetSaysSoTheNextTime(t *testing.T) {
	withDials(t, func(g *WithT, a *slowAccelerator, d *controller.Dials) {
		d.Known()
		after(time.Second)
		a.be(true, false)
		g.Expect(d.Set("a-1", "use1", 0)).To(Succeed())
		after(3 * time.Second)
		g.Expect(d.Set("a-2", "use2", 0)).To(Succeed(), "it is another's")
		g.Expect(d.Set("a-2", "use1", 0)).To(MatchError(errGone))
		after(10 * time.Second)
		a.be(false, false)
		g.Expect(d.Set("a-3", "use1", 0)).To(MatchError(errGone))
		after(3 * time.Second)
		g.Expect(d.Set("a-4", "use1", 10)).To(Succeed())
		after(3 * time.Second)
		g.Expect(d.Known()).To(HaveKeyWithValue(fleet.Region("use1"), 10))
		g.Expect(d.Known()).To(HaveKeyWithValue(fleet.Region("use2"), 100), "nobody has asked for that any more")
	})
}

func TestADialThatHadToWaitTooLongIsNotSet(t *testing.T) {
	withDials(t, func(g *WithT, a *slowAccelerator, d *controller.Dials) {
		a.be(true, false)
		g.Expect(d.Set("a-1", "use1", 0)).To(Succeed())
		after(time.Millisecond)
		g.Expect(d.Set("a-2", "use2", 0)).To(Succeed())
		a.be(false, false) // from the next call on
		after(time.Minute)
		g.Expect(a.has("use2")).To(BeZero(), "it waited for less than three seconds")

		a.be(true, false)
		g.Expect(d.Set("a-3", "use1", 0)).To(MatchError(errGone), "as the one before")
		after(0)
		g.Expect(d.Set("a-4", "use2", 100)).To(Succeed())
		a.be(false, false) // from the next call on
		after(time.Minute)
		g.Expect(a.has("use2")).To(BeZero(), "who decided may not lead any more")
	})
}

func TestDialsEndInTheMiddleOfACall(t *testing.T) {
	withDials(t, func(g *WithT, a *slowAccelerator, d *controller.Dials) {
		a.be(true, false)
		g.Expect(d.Set("a-1", "use1", 0)).To(Succeed())
		after(time.Second)
	})
}

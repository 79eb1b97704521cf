// Package storetest is the contract of [fleet.Store] as a test suite: every
// implementation passes it, a stand-in as well as the real thing.
//
//	var _ = storetest.Describe("sqlite", func() storetest.Open {
//		path := filepath.Join(GinkgoT().TempDir(), "fleet.db")
//		return func(ctx context.Context, clock func() time.Time) (fleet.Store, error) {
//			return sqlite.Open(ctx, sqlite.Config{Path: path, Clock: clock})
//		}
//	})
package storetest

import (
	"context"
	"math"
	"time"

	"github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gleak"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/testclock"
)

// Open opens a handle on the data of one spec; every handle of a spec sees the
// same data. The store stamps times with the clock that it is given.
type Open func(ctx context.Context, clock func() time.Time) (fleet.Store, error)

// Describe registers the suite for one implementation. newData is called
// before each spec, for data of that spec alone; the suite closes what it opens.
func Describe(name string, newData func() Open) bool {
	return ginkgo.Describe(name+" as a fleet.Store", func() {
		b := &bench{}
		ginkgo.BeforeEach(func() {
			good := gleak.Goroutines()
			ginkgo.DeferCleanup(func() {
				Eventually(gleak.Goroutines, "5s").ShouldNot(gleak.HaveLeaked(good))
			})
			*b = bench{open: newData(), clock: testclock.At(epoch)}
		})
		describeWrites(b)
		describeRefusals(b)
		describeSharing(b)
		describeWatch(b)
		describeClose(b)
	})
}

// epoch is when specs begin: not in the past, because a store may drop instances
// that were last heard of days ago.
var epoch = time.Date(2096, time.March, 14, 9, 26, 53, 589793238, time.UTC)

// bench is what the specs of one implementation work with.
type bench struct {
	open  Open
	clock *testclock.Clock
}

// store opens one more handle, closed at the end of the spec.
func (b *bench) store(ctx context.Context) fleet.Store {
	ginkgo.GinkgoHelper()
	store, err := b.open(ctx, b.clock.Now)
	Expect(err).NotTo(HaveOccurred())
	ginkgo.DeferCleanup(store.Close)
	return store
}

// instance has something in every field that its parent sets.
func instance(id string) fleet.Instance {
	return fleet.Instance{
		ID: id, Region: "use1", Zone: "use1-az1", Address: "10.0.0.7:8080",
		Models: []string{"org/model:8b", "other"}, Versions: map[string]string{"org/model:8b": "2026-11-01"}, KeyIDs: []string{"00112233445566aa", "ffeeddccbbaa9988"},
		Health: fleet.Health{Enclave: true, Reason: "engine: loading"},
		Load:   fleet.Load{Running: 1, Queued: 2, Slots: 3, Latency: 4 * time.Millisecond, Requests: 5},
		Usage: map[string]fleet.Usage{
			"org/model:8b": {Requests: 3, Ended: 2, Late: 1, Answers: 1, PromptTokens: 640, OutputTokens: 128}, "other": {},
		},
	}
}

func heartbeat(id string) fleet.Heartbeat {
	return fleet.Heartbeat{
		ID: id, Health: fleet.Health{Enclave: true, Engine: true},
		Load: fleet.Load{Running: 5, Queued: 6, Slots: 7, Latency: 8 * time.Millisecond, Requests: 9},
		Usage: map[string]fleet.Usage{
			"org/model:8b": {Requests: 6, Ended: 5, Late: 2, Answers: 4, PromptTokens: 1280, OutputTokens: math.MaxInt64},
		},
	}
}

// only reads the one instance that there is.
func only(ctx context.Context, store fleet.Store) fleet.Instance {
	ginkgo.GinkgoHelper()
	snapshot, err := store.Snapshot(ctx)
	Expect(err).NotTo(HaveOccurred())
	Expect(snapshot.Instances).To(HaveLen(1))
	return *snapshot.Instances[0]
}

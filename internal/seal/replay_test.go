package seal_test

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/seal"
)

func requestID(n int) (id seal.RequestID) {
	binary.BigEndian.PutUint64(id[:], uint64(n))
	return id
}

var _ = Describe("A replay set", func() {
	key := seal.KeyID{1}

	It("lets a request run once per key", func() {
		set := seal.NewReplaySet(10)
		expiry := now().Add(time.Minute)
		Expect(set.Add(key, requestID(1), expiry, now())).To(Succeed())
		Expect(set.Add(key, requestID(1), expiry, now())).To(MatchError(seal.ErrReplayed))
		Expect(set.Add(key, requestID(1), expiry.Add(time.Second), now())).To(MatchError(seal.ErrReplayed), "another expiry")
		Expect(set.Add(key, requestID(2), expiry, now())).To(Succeed())
		Expect(set.Add(seal.KeyID{2}, requestID(1), expiry, now())).To(Succeed())
	})

	It("lets a request run again that it is told to forget, and no other", func() {
		set := seal.NewReplaySet(2)
		expiry := now().Add(time.Minute)
		for range 10 { // leaves nothing behind
			Expect(set.Add(key, requestID(1), expiry, now())).To(Succeed())
			set.Forget(key, requestID(1), expiry)
			Expect(set.Len()).To(BeZero())
		}
		Expect(set.Add(key, requestID(1), expiry, now())).To(Succeed())
		set.Forget(key, requestID(2), expiry)
		set.Forget(seal.KeyID{2}, requestID(1), expiry)
		Expect(set.Add(key, requestID(1), expiry, now())).To(MatchError(seal.ErrReplayed))
		Expect(set.Add(key, requestID(2), expiry, expiry)).To(MatchError(seal.ErrExpired))
		Expect(set.Len()).To(BeZero(), "what was forgotten once expires all the same")
	})

	It("refuses when full, and has room again when entries expire", func() {
		set := seal.NewReplaySet(2)
		Expect(set.Add(key, requestID(1), now().Add(10*time.Second), now())).To(Succeed())
		Expect(set.Add(key, requestID(2), now().Add(20*time.Second), now())).To(Succeed())
		Expect(set.Add(key, requestID(3), now().Add(20*time.Second), now())).To(MatchError(seal.ErrReplaySetFull))
		Expect(set.Add(key, requestID(1), now().Add(10*time.Second), now())).To(MatchError(seal.ErrReplayed), "full or not")
		later := now().Add(10*time.Second - 1)
		Expect(set.Add(key, requestID(3), now().Add(20*time.Second), later)).To(MatchError(seal.ErrReplaySetFull))
		Expect(set.Add(key, requestID(3), now().Add(20*time.Second), later.Add(1))).To(Succeed())
		Expect(set.Len()).To(Equal(2))
	})

	It("refuses what has expired, by the latest time that it has seen", func() {
		set := seal.NewReplaySet(10)
		expiry := now().Add(10 * time.Second)
		Expect(set.Add(key, requestID(1), expiry, now())).To(Succeed())
		Expect(set.Add(key, requestID(2), expiry, expiry)).To(MatchError(seal.ErrExpired))
		Expect(set.Len()).To(BeZero(), "it was forgotten")
		Expect(set.Add(key, requestID(1), expiry, now())).To(MatchError(seal.ErrExpired), "with the clock set back")
	})

	It("agrees with a dumb twin that never forgets", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			set := seal.NewReplaySet(5)
			type run struct {
				id     int
				expiry time.Time
			}
			var runs []run
			latest := time.Time{}
			at := now()
			for range rapid.IntRange(1, 60).Draw(t, "steps") {
				at = at.Add(time.Duration(rapid.IntRange(-1500, 3000).Draw(t, "passes")) * time.Millisecond)
				id := rapid.IntRange(1, 8).Draw(t, "id")
				expiry := at.Add(time.Duration(rapid.IntRange(-1000, 8000).Draw(t, "lifetime")) * time.Millisecond)
				if at.After(latest) {
					latest = at
				}
				live, seen := 0, false
				for _, r := range runs {
					// Entries go when the second in which they expire is over.
					if r.expiry.Add(time.Second-1).Unix() > latest.Unix() {
						live++
						seen = seen || r.id == id
					}
				}
				err := set.Add(key, requestID(id), expiry, at)
				switch {
				case !expiry.After(latest):
					Expect(err).To(MatchError(seal.ErrExpired))
				case seen:
					Expect(err).To(MatchError(seal.ErrReplayed))
				case live >= 5:
					Expect(err).To(MatchError(seal.ErrReplaySetFull))
				default:
					Expect(err).NotTo(HaveOccurred())
					runs = append(runs, run{id, expiry})
				}
				Expect(set.Len()).To(BeNumerically("<=", 5))
			}
		})
	})

	It("lets one of many at once run", func() {
		set := seal.NewReplaySet(1000)
		var ran atomic.Int64
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				for i := range 100 {
					if set.Add(key, requestID(i), now().Add(time.Minute), now()) == nil {
						ran.Add(1)
					}
				}
			})
		}
		group.Wait()
		Expect(ran.Load()).To(BeEquivalentTo(100))
	})
})

package sim

import (
	"time"

	"github.com/mrgc/mrgc/controller/autoscaler"
	"github.com/mrgc/mrgc/controller/failover"
)

// tables are the strongly consistent ones: one item for failover, one for each
// region's autoscaler, and a lease for each of them.
type tables struct {
	failover item[failover.State]
	scaling  [regions]item[autoscaler.State]
	leases   [regions + 1]lease // the last is failover's
	hand     [regions]int
}

// item is a row with a version and the highest token under which it was written.
type item[T any] struct {
	value   T
	exists  bool
	version int64
	fence   int64
}

// put replaces a row if nobody else has meanwhile, and the token is not stale.
func put[T any](w *world, it *item[T], version, token int64, value T) bool {
	if it.version != version || !w.rules.admit(it.fence, token) {
		return false
	}
	it.value, it.exists, it.version, it.fence = value, true, version+1, max(it.fence, token)
	return true
}

// lease is who may act. Its holder beats; whoever has seen no beat for leaseFor, by
// the own clock, takes it, and the token rises. So no two clocks are compared.
type lease struct {
	holder int64 // a controller's start; 0: nobody
	token  int64
	beat   int64
}

const (
	leaseFor    = 6 * time.Second
	leaseMargin = time.Second // by which a holder stops earlier
	renewEvery  = 1500 * time.Millisecond
	watchEvery  = time.Second
)

// take gives the lease to a controller if it is still as it was seen.
func (w *world) take(i int, seen lease, by *controller) lease {
	l := &w.tables.leases[i]
	if *l != seen {
		return *l
	}
	l.holder, l.token, l.beat = by.start, l.token+1, 0
	w.watch.granted(i, l.token, by)
	return *l
}

// beat renews a lease that is still held.
func (w *world) beat(i int, token int64, by *controller) bool {
	l := &w.tables.leases[i]
	if l.token != token || l.holder != by.start {
		return false
	}
	l.beat++
	return true
}

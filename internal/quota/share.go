package quota

import (
	"container/list"
	"sync"
	"time"
)

// recentFor is for how long a tenant counts among those that share a model after
// it has asked for it. Who asks now and then is to find its share free: one that
// has just left gives it to the others a minute late, and they may use all that is
// free meanwhile.
const recentFor = time.Minute

// Use is what a tenant has of a model's instances.
type Use struct {
	// Tokens are those of its requests in flight, of the prompts and the most that
	// the answers may have; AllTokens are those of everybody's.
	Tokens, AllTokens int
	// Share is its weight; AllShares the sum of those who have asked of late, its
	// own among them.
	Share, AllShares int
}

// Alone says whether nobody else has asked of late: there is nobody to leave
// anything to.
func (u Use) Alone() bool { return u.AllShares <= u.Share }

// Over says whether a tenant has to wait, with so many times as many requests in
// flight as there should be: at up to 1 something is free, and nobody has to.
//
// Beyond, who has more has to wait than its share of what should be in flight: not
// of what is, since tenants that each wait for the other to have more would let
// the queue grow without end. Who asks for less than its share is always admitted,
// and what it leaves anybody may use, as nothing is refused while something is free.
// What is shared are tokens: a slot is held for as long as a request has tokens.
func Over(u Use, overload float64) bool {
	return overload > 1 && !u.Alone() &&
		float64(u.Tokens)*overload*float64(u.AllShares) > float64(u.AllTokens)*float64(u.Share)
}

// Recent remembers who has asked for which model of late. It is safe for
// concurrent use; its zero value remembers nobody. What it keeps is bounded by the
// tenants and models that there are.
type Recent struct {
	mu     sync.Mutex
	models map[string]*askers // guarded by mu
}

// askers are those of one model.
type askers struct {
	shares int
	order  *list.List               // of asker, who asked the longest ago first
	byName map[string]*list.Element // in order
}

type asker struct {
	name  string
	share int
	at    time.Time
}

// Ask notes that a tenant with a weight asks for a model, and gives the sum of the
// weights of all that have of late.
func (r *Recent) Ask(model, tenant string, share int, now time.Time) (all int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.models == nil {
		r.models = map[string]*askers{}
	}
	a := r.models[model]
	if a == nil {
		a = &askers{order: list.New(), byName: map[string]*list.Element{}}
		r.models[model] = a
	}
	if known := a.byName[tenant]; known != nil {
		a.remove(known)
	}
	for oldest := a.order.Front(); oldest != nil && now.Sub(oldest.Value.(asker).at) >= recentFor; oldest = a.order.Front() {
		a.remove(oldest)
	}
	a.byName[tenant] = a.order.PushBack(asker{tenant, share, now})
	a.shares += share
	return a.shares
}

func (a *askers) remove(e *list.Element) {
	gone := a.order.Remove(e).(asker)
	delete(a.byName, gone.name)
	a.shares -= gone.share
}

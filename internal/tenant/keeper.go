package tenant

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"sync"
	"time"
)

// ErrOlder says that a genuine list is not newer than the one that is held.
var ErrOlder = errors.New("an older list of tenants than the one that is held")

// Keeper holds the newest genuine list that it has been offered. It is safe for
// concurrent use. It remembers for as long as it lives: one that is new takes
// the first list that has not expired.
type Keeper struct {
	keys []ed25519.PublicKey

	mu      sync.Mutex
	set     *Set          // guarded by mu; nil before the first
	file    []byte        // guarded by mu: what set was read from
	changed chan struct{} // guarded by mu; closed when set is replaced
}

// NewKeeper makes a keeper that trusts lists which one of keys has signed.
func NewKeeper(keys ...ed25519.PublicKey) (*Keeper, error) {
	if len(keys) == 0 {
		return nil, errors.New("no key that verifies the list of tenants")
	}
	for _, key := range keys {
		if len(key) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("a key that verifies the list of tenants has %d bytes, want %d", len(key), ed25519.PublicKeySize)
		}
	}
	return &Keeper{keys: keys, changed: make(chan struct{})}, nil
}

// Offer takes a signed file if it is genuine, newer than what is held, and not
// expired; with any error, what is held stays. The file that is held already is
// no error. Another one of the same version is: two lists of one version mean
// that somebody signs beside the operator, or by mistake.
func (k *Keeper) Offer(file []byte, now time.Time) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.set != nil && bytes.Equal(file, k.file) {
		return nil
	}
	list, err := Verify(k.keys, file)
	if err != nil {
		return err
	}
	if held := k.set.Version(); list.Version <= held {
		return fmt.Errorf("%w: version %d, held is %d", ErrOlder, list.Version, held)
	}
	if !now.Before(list.ExpiresAt.Add(Grace)) {
		return fmt.Errorf("list of tenants %d expired at %s, and its grace of %v is over", list.Version, list.ExpiresAt.Format(time.RFC3339), Grace)
	}
	k.set, k.file = list.set(), bytes.Clone(file)
	close(k.changed)
	k.changed = make(chan struct{})
	return nil
}

// Set is the newest list; nil before the first.
func (k *Keeper) Set() *Set {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.set
}

// Held gives the newest list, the signed file that it is from, which nobody
// writes to, and a channel that is closed when there is a newer one.
func (k *Keeper) Held() (set *Set, file []byte, changed <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.set, k.file, k.changed
}

package enclave

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/awscall"
	"github.com/mrgc/mrgc/internal/kms"
	"github.com/mrgc/mrgc/internal/seal"
)

// Fleet is a fleet whose enclaves hold one key together, beside each one's own: a
// fall-back for clients that find none of the enclaves any more that they know.
// There is a key for each epoch, and for each region, model and mode. All fields
// are part of the measured image: whoever chose them could choose the key.
type Fleet struct {
	Name  string // 1 to 32 of a-z, 0-9 and -
	KMS   string // ARN of the KMS key that seeds are made and encrypted by
	Table FleetTable
	// EpochLength is how long an epoch's key is the one to seal to, in whole seconds;
	// it opens requests for as long again. The same in all of the fleet. Default 12 h.
	EpochLength time.Duration
}

// FleetTable is what a fleet's enclaves share: [fleetkey.Table]. Whatever error is
// not [seal.ErrReplayed] says that it could not be asked.
type FleetTable interface {
	// Seed gives the ciphertext of an epoch's seed; nil: there is none yet.
	Seed(ctx context.Context, epoch seal.FleetEpoch) (ciphertext []byte, err error)
	// PutSeed stores one that is used until then, unless there is one.
	PutSeed(ctx context.Context, epoch seal.FleetEpoch, ciphertext []byte, until time.Time) (first bool, err error)
	// Record notes that a key is about to run a request, for all who hold it:
	// [seal.ErrReplayed] if one of them has.
	Record(ctx context.Context, key seal.KeyID, request seal.RequestID, expiry time.Time) error
	SetCredentials(awscall.Credentials)
}

const defaultEpochLength = 12 * time.Hour

var (
	fleetName = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)
	kmsKeyARN = regexp.MustCompile(`^arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+$`)
)

func (f *Fleet) check() error {
	switch {
	case !fleetName.MatchString(f.Name):
		return fmt.Errorf("enclave: fleet %q: want 1 to 32 of a-z, 0-9 and -", f.Name)
	case !kmsKeyARN.MatchString(f.KMS):
		return fmt.Errorf("enclave: fleet's KMS key %q: want its ARN: anything else could be of a key in any account", f.KMS)
	case f.Table == nil:
		return errors.New("enclave: a fleet without a table: nobody would know what its key has run")
	case f.EpochLength < time.Second || f.EpochLength%time.Second != 0:
		return fmt.Errorf("enclave: fleet's epochs of %s, want whole seconds", f.EpochLength)
	}
	return nil
}

// epoch is one by its number: from number times length on, since 1970.
type epoch struct {
	number uint64
	length time.Duration
}

func epochAt(t time.Time, length time.Duration) epoch {
	return epoch{uint64(t.Unix()) / uint64(length/time.Second), length}
}

func (e epoch) start() time.Time {
	return time.Unix(int64(e.number)*int64(e.length/time.Second), 0).UTC()
}

// notAfter is the end of the next one: until then its key opens requests.
func (e epoch) notAfter() time.Time { return e.start().Add(2*e.length - time.Second) }

// wantedEpochs are those whose keys are to be held at a time, the newest first: the
// present one, the one before, and from a twelfth of its length before it begins
// the next, so that nobody has to wait for KMS when it does.
func wantedEpochs(now time.Time, length time.Duration) []epoch {
	present := epochAt(now, length)
	wanted := []epoch{present}
	if present.number > 0 {
		wanted = append(wanted, epoch{present.number - 1, length})
	}
	if next := epochAt(now.Add(length/12), length); next != present {
		wanted = slices.Insert(wanted, 0, next)
	}
	return wanted
}

// fleetRetry is how often the keys are looked after, and so how soon what failed is
// tried again.
const fleetRetry = 5 * time.Second

// fleetKeys holds a fleet's keys, epoch by epoch.
type fleetKeys struct {
	e    *Enclave
	wake chan struct{} // holds one: there are credentials

	renewing sync.Mutex        // held while KMS and the table are asked
	failed   map[uint64]string // guarded by renewing: what was told last of an epoch
	seedless map[uint64]bool   // guarded by renewing: epochs that never had a key

	mu     sync.Mutex
	epochs []heldEpoch // guarded by mu: newest first; a slice that was published does not change
}

type heldEpoch struct {
	number uint64
	key    attestedKey
}

func newFleetKeys(e *Enclave) *fleetKeys {
	return &fleetKeys{e: e, wake: make(chan struct{}, 1), failed: map[uint64]string{}, seedless: map[uint64]bool{}}
}

// run looks after the keys until ctx ends.
func (f *fleetKeys) run(ctx context.Context) {
	ticker := time.NewTicker(fleetRetry)
	defer ticker.Stop()
	for {
		f.renew(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-f.wake:
		}
	}
}

func (f *fleetKeys) credentials(c awscall.Credentials) {
	f.e.config.Fleet.Table.SetCredentials(c)
	select {
	case f.wake <- struct{}{}:
	default: // it is about to look
	}
}

// held are the keys, the newest first, of which some may not be valid yet.
func (f *fleetKeys) held() []heldEpoch {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.epochs
}

// renew drops the keys of epochs that are over, and gets those that are missing.
// What fails is logged and recorded, once, and tried again the next time.
func (f *fleetKeys) renew(ctx context.Context) {
	f.renewing.Lock()
	defer f.renewing.Unlock()
	now := f.e.config.Now()
	wanted := wantedEpochs(now, f.e.config.Fleet.EpochLength)
	keep := slices.Clone(f.held())
	for _, old := range keep {
		if !slices.ContainsFunc(wanted, func(w epoch) bool { return w.number == old.number }) {
			f.step(api.FleetKeyWiped, old.number, old.key.key.KeyID().String(), nil)
			delete(f.failed, old.number)
			f.e.cleaner.ended() // its memory is nobody's any more, but for answers under way
		}
	}
	keep = slices.DeleteFunc(keep, func(old heldEpoch) bool {
		return !slices.ContainsFunc(wanted, func(w epoch) bool { return w.number == old.number })
	})
	f.publish(keep)
	if f.e.config.KMS.AccessKeyID() == "" {
		return // the parent brings credentials, and wakes this
	}
	for _, w := range wanted {
		if f.seedless[w.number] || slices.ContainsFunc(keep, func(h heldEpoch) bool { return h.number == w.number }) {
			continue
		}
		key, err := f.obtain(ctx, w, now)
		switch {
		case errors.Is(err, errNoSeed):
			f.seedless = map[uint64]bool{w.number: true} // the last one; those before it are not wanted any more
		case err != nil:
			f.fail(ctx, w.number, err)
		default:
			delete(f.failed, w.number)
			keep = append(slices.Clone(keep), heldEpoch{w.number, key})
			slices.SortFunc(keep, func(a, b heldEpoch) int { return cmp.Compare(b.number, a.number) })
			f.publish(keep)
		}
	}
}

func (f *fleetKeys) publish(epochs []heldEpoch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.epochs = epochs
}

// fail tells of a failure that is another one than before. What could not be asked
// is one story, though each attempt has words of its own.
func (f *fleetKeys) fail(ctx context.Context, number uint64, err error) {
	story := "cannot be asked"
	if errors.Is(err, kms.ErrDenied) || errors.Is(err, kms.ErrCiphertext) {
		story = err.Error()
	}
	if ctx.Err() != nil || f.failed[number] == story {
		return
	}
	f.failed[number] = story
	f.e.config.Logger.Error("no fleet key", "epoch", number, "error", err)
	f.step(api.FleetSeedRefused, number, "", err)
}

// errNoSeed is an epoch that ended without any enclave: nobody has sealed to it, and
// nobody should any more.
var errNoSeed = errors.New("the epoch has no seed")

// obtain gets an epoch's key: by the seed that the fleet has, or by a new one. Who
// makes one and is not the first takes the first one's.
func (f *fleetKeys) obtain(ctx context.Context, of epoch, now time.Time) (attestedKey, error) {
	config := f.e.config.Fleet
	name := f.name(of.number)
	stored, err := config.Table.Seed(ctx, name)
	if err != nil {
		return attestedKey{}, err
	}
	if stored == nil && !now.Before(of.start().Add(of.length)) {
		return attestedKey{}, errNoSeed
	}
	if stored == nil {
		seed, ciphertext, err := f.e.config.KMS.GenerateDataKey(ctx, config.KMS, name.EncryptionContext())
		if err != nil {
			return attestedKey{}, err
		}
		defer clear(seed)
		first, err := config.Table.PutSeed(ctx, name, ciphertext, of.notAfter())
		if err != nil {
			return attestedKey{}, err
		}
		if first {
			return f.derive(api.FleetSeedMade, seed, of, now)
		}
		if stored, err = config.Table.Seed(ctx, name); err != nil || stored == nil {
			return attestedKey{}, cmp.Or(err, errors.New("enclave: the first enclave's seed is gone again"))
		}
	}
	// By this key alone: whoever can write the table could encrypt a seed that he
	// knows by a key of his own.
	seed, err := f.e.config.KMS.DecryptBy(ctx, config.KMS, stored, name.EncryptionContext())
	if err != nil {
		return attestedKey{}, err
	}
	defer clear(seed)
	return f.derive(api.FleetSeedReleased, seed, of, now)
}

func (f *fleetKeys) derive(step string, seed []byte, of epoch, now time.Time) (attestedKey, error) {
	key, receipts, err := seal.NewFleetKey(seed, f.name(of.number), seal.Claims{
		Model: f.e.config.Model, ManifestSHA256: f.e.config.ManifestSHA256, Mode: f.e.config.Mode,
		NotBefore: of.start().Add(-clockSkew), NotAfter: of.notAfter(),
	})
	if err != nil {
		return attestedKey{}, fmt.Errorf("enclave: %w", err)
	}
	f.step(step, of.number, key.KeyID().String(), nil)
	return attestedKey{key: key, receipts: receipts, made: now}, nil
}

func (f *fleetKeys) name(number uint64) seal.FleetEpoch {
	return seal.FleetEpoch{Fleet: f.e.config.Fleet.Name, Region: f.e.config.Region, Number: number}
}

// step has the parent record what has happened to a key.
func (f *fleetKeys) step(step string, number uint64, keyID string, err error) {
	done := api.KeyRelease{Time: f.e.config.Now(), Fleet: &api.FleetStep{
		Step: step, Fleet: f.e.config.Fleet.Name, Region: f.e.config.Region, Epoch: strconv.FormatUint(number, 10), KeyID: keyID,
	}}
	if err != nil {
		done.Error = err.Error()
	} else {
		f.e.config.Logger.Info("fleet key", "step", step, "epoch", number, "key", keyID)
	}
	f.e.releases.add(done)
}

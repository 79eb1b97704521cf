package enclave

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/nsm"
	"github.com/mrgc/mrgc/internal/seal"
)

const (
	// claimsValidity is how long clients may seal to a key once they have
	// verified it, with no router to ask.
	claimsValidity = 24 * time.Hour
	// keyRotation is when a new key takes over; the old one still opens what was
	// sealed to it until its claims expire.
	keyRotation = 12 * time.Hour
	// documentRenewal keeps documents well below the 5 minutes that clients take.
	documentRenewal = 2 * time.Minute
	// documentLimit is how old a document is still offered when the security
	// module does not renew it: routers keep it for another minute.
	documentLimit = 4 * time.Minute
	// clockSkew lets a client whose clock is behind use a key at once. By as much
	// the enclave's own clock may differ from its security module's.
	clockSkew = time.Minute
)

// keyring holds the keys that open requests, and their attestation documents.
type keyring struct {
	config *Config
	fleet  func() []heldEpoch // keys that others hold, too; nil: none

	renewing  sync.Mutex                 // held while the security module works, which requests do not wait for
	documents map[seal.KeyID]attestation // guarded by renewing: of the fleet's keys

	mu   sync.Mutex
	keys []attestedKey // guarded by mu: newest first; a slice that was published does not change
}

// attestation is a document, and when it was made.
type attestation struct {
	document []byte
	at       time.Time
}

type attestedKey struct {
	key      *seal.RecipientKey
	receipts ed25519.PrivateKey // signs them; its public half is in the claims
	made     time.Time
	attested attestation // of own keys
}

// shared says whether other enclaves hold the key, too.
func (a *attestedKey) shared() bool { return a.key.Type() == seal.TypeFleet }

func newKeyring(config *Config) *keyring { return &keyring{config: config} }

// find gives the key that opens an envelope to these recipients: one of its own, if
// there is one.
func (k *keyring) find(ids []seal.KeyID, now time.Time) (attestedKey, bool) {
	for _, keys := range []func() []attestedKey{k.held, k.shared} {
		for _, held := range keys() {
			if slices.Contains(ids, held.key.KeyID()) && held.key.Claims().ValidAt(now) {
				return held, true
			}
		}
	}
	return attestedKey{}, false
}

// shared are the fleet's keys, newest first.
func (k *keyring) shared() []attestedKey {
	if k.fleet == nil {
		return nil
	}
	var keys []attestedKey
	for _, held := range k.fleet() {
		keys = append(keys, held.key)
	}
	return keys
}

func (k *keyring) held() []attestedKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keys
}

// recipients gives claims and documents, newest key first, own ones before those
// of a fleet. It makes a new key and renews documents when they are due, and forgets
// keys that have expired. When it fails, the keys that were held go on opening
// requests.
func (k *keyring) recipients(ctx context.Context, now time.Time) ([]api.Recipient, error) {
	k.renewing.Lock()
	defer k.renewing.Unlock()
	keys := slices.Clone(k.held())
	keys = slices.DeleteFunc(keys, func(held attestedKey) bool { return !held.key.Claims().ValidAt(now) })
	if len(keys) == 0 || now.Sub(keys[0].made) >= keyRotation {
		key, err := k.newKey(now)
		if err != nil {
			return nil, err
		}
		keys = slices.Insert(keys, 0, key)
	}
	recipients := make([]api.Recipient, len(keys))
	for i := range keys {
		held := &keys[i]
		var err error
		if held.attested, err = k.attest(ctx, held.key, held.attested, now); err != nil {
			return nil, err
		}
		recipients[i] = api.Recipient{Claims: held.key.RawClaims(), Attestation: held.attested.document}
	}
	recipients = append(recipients, k.sharedRecipients(ctx, now)...)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys = keys
	return recipients, nil
}

func (k *keyring) newKey(now time.Time) (attestedKey, error) {
	public, receipts, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return attestedKey{}, fmt.Errorf("enclave: make receipt key: %w", err)
	}
	key, err := seal.NewRecipientKey(seal.Claims{
		Model:          k.config.Model,
		ManifestSHA256: k.config.ManifestSHA256,
		Region:         k.config.Region,
		Mode:           k.config.Mode,
		NotBefore:      now.Add(-clockSkew),
		NotAfter:       now.Add(claimsValidity),
		ReceiptKey:     public,
	})
	if err != nil {
		return attestedKey{}, fmt.Errorf("enclave: %w", err)
	}
	return attestedKey{key: key, receipts: receipts, made: now}, nil
}

// sharedRecipients are those of the fleet, with this enclave's own documents. That
// one of them has none stops nobody from serving by its own key. The caller holds
// renewing.
func (k *keyring) sharedRecipients(ctx context.Context, now time.Time) (recipients []api.Recipient) {
	before := k.documents
	k.documents = map[seal.KeyID]attestation{}
	for _, held := range k.shared() {
		if !held.key.Claims().ValidAt(now) {
			continue
		}
		attested, err := k.attest(ctx, held.key, before[held.key.KeyID()], now)
		if err != nil {
			k.config.Logger.Error("no attestation document of a fleet's key", "error", err)
			continue
		}
		k.documents[held.key.KeyID()] = attested
		recipients = append(recipients, api.Recipient{Claims: held.key.RawClaims(), Attestation: attested.document})
	}
	return recipients
}

// attest renews a document that is due; one that cannot be renewed is good for a
// while.
func (k *keyring) attest(ctx context.Context, key *seal.RecipientKey, held attestation, now time.Time) (attestation, error) {
	if now.Sub(held.at) < documentRenewal {
		return held, nil
	}
	digest := key.ClaimsDigest()
	document, err := k.config.NSM.Attest(ctx, nsm.Request{UserData: digest[:]})
	switch {
	case err == nil:
		if err := k.checkClock(document); err != nil {
			return attestation{}, err
		}
		return attestation{document, now}, nil
	case now.Sub(held.at) < documentLimit:
		return held, nil
	}
	return attestation{}, fmt.Errorf("enclave: attest key %s: %w", key.KeyID(), err)
}

// checkClock compares the enclave's clock with that of the security module, which has
// made a document just now. Expiries, claims and tenants' lists are judged by the former:
// an enclave whose clock is wrong offers no key.
func (k *keyring) checkClock(document []byte) error {
	made, err := k.config.DocumentTime(document)
	if err != nil {
		return fmt.Errorf("enclave: %w", err)
	}
	if off := k.config.Now().Sub(made); off.Abs() > clockSkew {
		return fmt.Errorf("enclave: the clock is %s off that of the security module", off.Round(time.Second))
	}
	return nil
}

package enclave

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
)

// saltSecret is what all salts of an enclave are derived from. It is made at the
// enclave's start and goes with it: no later enclave finds what prompts of this
// one have left in the engine's cache.
type saltSecret [32]byte

func newSaltSecret(random io.Reader) (s saltSecret, err error) {
	if _, err = io.ReadFull(random, s[:]); err != nil {
		return s, fmt.Errorf("enclave: secret of cache salts: %w", err)
	}
	return s, nil
}

// Labels of the derivations in docs/protocol.md, "Cache salt".
const (
	labelSalt   = "mrgc-salt-1 cache"
	labelSaltID = "mrgc-salt-1 id"
	// saltPrefix keeps salts apart from whatever else an engine hashes into the
	// same place: vLLM puts names of LoRA adapters there.
	saltPrefix = "mrgc-salt-1-"
)

// salt separates prompts in an engine's prefix cache.
type salt [sha256.Size]byte

// of gives the salt of a request: whoever does not have the tenant's cache
// secret, and is not let in as that tenant, has another one. own is what the
// request itself asked to be kept apart from the tenant's others by, if anything.
func (s *saltSecret) of(tenant string, cacheSecret, own []byte) (derived salt) {
	mac := hmac.New(sha256.New, s[:])
	mac.Write([]byte(labelSalt))
	for _, part := range [][]byte{[]byte(tenant), cacheSecret, own} {
		var length [4]byte
		binary.BigEndian.PutUint32(length[:], uint32(len(part))) //nolint:gosec // parts of an envelope, which has 16 MiB at most
		mac.Write(length[:])
		mac.Write(part)
	}
	mac.Sum(derived[:0])
	mac.Reset()
	return derived
}

// text is the salt as engines take it.
func (s *salt) text() string { return saltPrefix + base64.RawURLEncoding.EncodeToString(s[:]) }

// id names the salt in receipts. It tells two salts apart, and nothing else of
// them, as they are drawn from 2^256.
func (s *salt) id() seal.SaltID {
	digest := sha256.Sum256(append([]byte(labelSaltID), s[:]...))
	return seal.SaltID(digest[:len(seal.SaltID{})])
}

// errOwnSalt is vLLM's rule for the field.
var errOwnSalt = errors.New(`field "cache_salt" is not a string, or empty`)

// ownSalt is the request's own cache_salt, as it is spelled. The engine never
// gets it: it could be anybody's.
func ownSalt(fields map[string]json.RawMessage) ([]byte, error) {
	raw, ok := fields["cache_salt"]
	switch {
	case !ok || string(raw) == "null":
		return nil, nil
	case raw[0] != '"' || len(raw) <= len(`""`):
		return nil, errOwnSalt
	}
	return bytes.Clone(raw), nil
}

// cacheKinds are what a guard may say of its engine's cache.
var cacheKinds = map[string]bool{api.CacheSalt: true, api.CacheSlots: true, api.CacheNone: true}

// cacheSaid is the guard's word on the engine's cache; empty when it says none
// that is known.
func cacheSaid(header string) string {
	if cacheKinds[header] {
		return header
	}
	return ""
}

// Package credential derives what each part of the cluster gets to see of a
// tenant's API key.
//
// The key itself stays on the tenant's machine. Four independent secrets are
// derived from it with HMAC-SHA-256 (RFC 2104), so that no part can compute what
// another part checks:
//
//   - the edge token, which Envoy and the router see as a bearer token. It
//     admits a request to the cluster and opens nothing;
//   - the enclave token, which travels inside the sealed plaintext and
//     authenticates the tenant to the enclave;
//   - the cache secret, also sealed, which separates the tenant's prompt cache
//     from everyone else's;
//   - the affinity secret, which stays with the key and makes the affinity of
//     conversations a secret function of how they begin.
//
// The cluster stores SHA-256 digests of the two tokens and can derive neither
// from them: the tokens have 256 bits of entropy, so a plain hash is enough.
package credential

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
)

const (
	prefix      = "mrgc-"
	secretBytes = 32
)

// Key is a tenant's API key, written "mrgc-<tenant>-<secret>" where the secret
// is 32 random bytes in unpadded base64url (RFC 4648 section 5).
type Key struct {
	tenant string
	secret [secretBytes]byte
}

// Digest is the SHA-256 of a token, the only form in which the cluster stores it.
type Digest [sha256.Size]byte

var tenantName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// encodedSecretLen is the length of a secret in base64url: the secret's own
// alphabet contains '-', so a key is split by length and not at a separator.
var encodedSecretLen = base64.RawURLEncoding.EncodedLen(secretBytes)

var errNotAKey = errors.New(`not an MRGC API key: it has the form "mrgc-<tenant>-<43 characters>"`)

// New makes a key for a tenant out of random's first 32 bytes.
func New(random io.Reader, tenant string) (Key, error) {
	if !tenantName.MatchString(tenant) {
		return Key{}, fmt.Errorf("tenant name %q: want 1 to 63 of a-z, 0-9 and '-', no '-' at either end", tenant)
	}
	k := Key{tenant: tenant}
	if _, err := io.ReadFull(random, k.secret[:]); err != nil {
		return Key{}, fmt.Errorf("draw an API key: %w", err)
	}
	return k, nil
}

// Parse reads a key. Its error does not repeat what was given.
func Parse(text string) (Key, error) {
	rest, ok := strings.CutPrefix(text, prefix)
	if !ok || len(rest) < encodedSecretLen+2 {
		return Key{}, errNotAKey
	}
	cut := len(rest) - encodedSecretLen
	tenant, dash, secret := rest[:cut-1], rest[cut-1], rest[cut:]
	if dash != '-' || !tenantName.MatchString(tenant) {
		return Key{}, errNotAKey
	}
	k := Key{tenant: tenant}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(secret)
	if err != nil || len(raw) != secretBytes {
		return Key{}, errNotAKey
	}
	copy(k.secret[:], raw)
	clear(raw)
	return k, nil
}

// Tenant is the name of the key's tenant.
func (k *Key) Tenant() string { return k.tenant }

// Text is the key as the tenant's SDK is given it.
func (k *Key) Text() string {
	return prefix + k.tenant + "-" + base64.RawURLEncoding.EncodeToString(k.secret[:])
}

// String hides the secret, so that a key in a log line gives nothing away.
func (k Key) String() string { return prefix + k.tenant + "-…" }

// EdgeToken is what Envoy and the router see, in base64url.
func (k *Key) EdgeToken() []byte { return encode(k.derive("mrgc edge token v1")) }

// EnclaveToken is what the enclave checks, in base64url.
func (k *Key) EnclaveToken() []byte { return encode(k.derive("mrgc enclave token v1")) }

// CacheSecret separates the tenant's prompt cache: 32 bytes.
func (k *Key) CacheSecret() []byte { return k.derive("mrgc cache secret v1") }

// AffinitySecret keys the opaque affinity of conversations: 32 bytes. It never
// leaves the tenant's machine.
func (k *Key) AffinitySecret() []byte { return k.derive("mrgc affinity secret v1") }

// derive is HMAC-SHA-256 under the key's secret of label and tenant.
func (k *Key) derive(label string) []byte {
	mac := hmac.New(sha256.New, k.secret[:])
	mac.Write([]byte(label))
	mac.Write([]byte{0})
	mac.Write([]byte(k.tenant))
	return mac.Sum(nil)
}

func encode(raw []byte) []byte {
	defer clear(raw)
	return base64.RawURLEncoding.AppendEncode(nil, raw)
}

// DigestOf is the stored form of a token.
func DigestOf(token []byte) Digest { return sha256.Sum256(token) }

// ParseDigest reads a digest in hex.
func ParseDigest(text string) (Digest, error) {
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != sha256.Size {
		return Digest{}, fmt.Errorf("digest: want %d hex digits", 2*sha256.Size)
	}
	return Digest(raw), nil
}

// String is the digest in hex.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText and UnmarshalText make a digest hex in JSON.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads a digest in hex.
func (d *Digest) UnmarshalText(text []byte) (err error) {
	*d, err = ParseDigest(string(text))
	return err
}

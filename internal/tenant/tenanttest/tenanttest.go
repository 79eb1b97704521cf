// Package tenanttest makes signed lists of tenants for tests.
package tenanttest

import (
	"crypto/ed25519"
	"testing"
	"time"

	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/dsse"
	"github.com/mrgc/mrgc/internal/tenant"
)

// Signer signs lists, each of a higher version than the one before.
type Signer struct {
	// Expires is when they do: not in any test's time, unless it is changed.
	Expires time.Time

	key     ed25519.PrivateKey
	version uint64
}

// NewSigner makes a signer with a key of its own.
func NewSigner(tb testing.TB) *Signer {
	tb.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		tb.Fatal(err)
	}
	return &Signer{key: key, Expires: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)}
}

// Public verifies what is signed.
func (s *Signer) Public() ed25519.PublicKey { return s.key.Public().(ed25519.PublicKey) }

// Sign gives a signed file.
func (s *Signer) Sign(tb testing.TB, tenants ...tenant.Tenant) []byte {
	tb.Helper()
	s.version++
	file, err := tenant.Sign(s.key, &tenant.List{Version: s.version, ExpiresAt: s.Expires, Tenants: tenants})
	if err != nil {
		tb.Fatal(err)
	}
	return file
}

// Keeper holds a list that has just been signed.
func Keeper(tb testing.TB, tenants ...tenant.Tenant) *tenant.Keeper {
	tb.Helper()
	signer := NewSigner(tb)
	keeper, err := tenant.NewKeeper(signer.Public())
	if err != nil {
		tb.Fatal(err)
	}
	if err := keeper.Offer(signer.Sign(tb, tenants...), time.Now()); err != nil {
		tb.Fatal(err)
	}
	return keeper
}

// Tenant is one with the tokens given, and no rule.
func Tenant(name, edgeToken, enclaveToken string) tenant.Tenant {
	return tenant.Tenant{
		Name:          name,
		EdgeTokens:    tenant.Digests{credential.DigestOf([]byte(edgeToken))},
		EnclaveTokens: tenant.Digests{credential.DigestOf([]byte(enclaveToken))},
	}
}

// PublicPEM is what verifies, as a file has it.
func (s *Signer) PublicPEM(tb testing.TB) []byte {
	tb.Helper()
	_, public, err := dsse.MarshalKey(s.key)
	if err != nil {
		tb.Fatal(err)
	}
	return public
}

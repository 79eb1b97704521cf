// Package tenant is who the tenants are and what each may do: pure values and
// decisions, the same for Envoy's configuration, the picker and the enclave.
//
// A [List] is written by the operator, signed ([Sign]), and handed to every part
// of the cluster as a file that says by itself whether it is genuine
// ([Verify]). Each part keeps the newest that it has seen in a [Keeper], and
// decides by its [Set]:
//
//	t, err := keeper.Set().AdmitToEnclave(name, token, now)
//	t.Models.Allow(model), t.Regions.Allow(region)
//
// What is not signed can restrict a set ([Set.Restrict]) and never add to it.
// docs/tenants.md has the rules in their order, and who enforces which.
package tenant

import (
	"cmp"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/mrgc/mrgc/internal/credential"
)

// Grace is for how long after its expiry a list still holds: time to sign
// another one, and no more.
const Grace = time.Hour

// Why a set does not know a tenant.
var (
	// ErrUnknown says that there is no such tenant, or no longer: nobody who asks
	// is told which.
	ErrUnknown = errors.New("no such tenant")
	// ErrNoList says that no genuine list has been seen, or that it has expired
	// and its grace is over: nobody is served.
	ErrNoList = errors.New("there is no list of tenants that holds: sign a new one with `mrgc tenants sign`")
)

// Tenant is one tenant and its rules.
type Tenant struct {
	// Name: 1 to 63 of a-z, 0-9 and '-', no '-' at either end.
	Name string `json:"name"`
	// EdgeTokens and EnclaveTokens are digests of the tokens of its API keys
	// (package credential): one each, two while a key is replaced. Who is named by a
	// certificate alone has no edge token.
	EdgeTokens    Digests `json:"edge_token_sha256"`
	EnclaveTokens Digests `json:"enclave_token_sha256"`
	// SANs are names of certificates that Envoy and picker take in place of an edge
	// token. The enclave sees none, and goes by its token.
	SANs []SAN `json:"sans,omitempty"`
	// Models are those that it may ask for, and Regions those that its data may
	// not leave: neither its Envoy nor its instance is in another.
	Models  Names `json:"models,omitzero"`
	Regions Names `json:"regions,omitzero"`
	Limits
	// Revoked tenants are kept, so that a list says whom it no longer serves.
	Revoked bool `json:"revoked,omitempty"`
}

// Names are what a rule allows: nil is everything, an empty list nothing.
type Names []string

// Allow says whether a name is allowed.
func (n Names) Allow(name string) bool { return n == nil || slices.Contains(n, name) }

// And is what both allow.
func (n Names) And(other Names) Names {
	switch {
	case n == nil:
		return other
	case other == nil:
		return n
	}
	both := Names{}
	for _, name := range n {
		if slices.Contains(other, name) {
			both = append(both, name)
		}
	}
	return both
}

// Digests are stored tokens.
type Digests []credential.Digest

// Hold says whether token is one of them. Its time depends on how many there
// are, and on nothing secret.
func (d Digests) Hold(token []byte) bool {
	given := credential.DigestOf(token)
	found := 0
	for _, stored := range d {
		found |= subtle.ConstantTimeCompare(stored[:], given[:])
	}
	return found == 1
}

// Set is a verified list, as those who serve requests ask it. It is immutable;
// a nil Set knows nobody.
type Set struct {
	version uint64
	expires time.Time
	tenants map[string]*Tenant
}

// Version rises with each list that is signed; 0 for none.
func (s *Set) Version() uint64 {
	if s == nil {
		return 0
	}
	return s.version
}

// Expires is when a new list should long have been signed: a [Grace] before
// this one no longer holds.
func (s *Set) Expires() time.Time {
	if s == nil {
		return time.Time{}
	}
	return s.expires
}

// Find gives a tenant that may be served; [ErrNoList] or [ErrUnknown].
func (s *Set) Find(name string, now time.Time) (*Tenant, error) {
	if s == nil || !now.Before(s.expires.Add(Grace)) {
		return nil, ErrNoList
	}
	t := s.tenants[name]
	if t == nil || t.Revoked {
		return nil, ErrUnknown
	}
	return t, nil
}

// AdmitToEdge gives the tenant whose edge token that is; [ErrNoList], or
// [ErrUnknown] for whatever else is wrong.
func (s *Set) AdmitToEdge(name string, token []byte, now time.Time) (*Tenant, error) {
	t, err := s.Find(name, now)
	if err == nil && !t.EdgeTokens.Hold(token) {
		return nil, ErrUnknown
	}
	return t, err
}

// AdmitToEnclave does the same with an enclave token.
func (s *Set) AdmitToEnclave(name string, token []byte, now time.Time) (*Tenant, error) {
	t, err := s.Find(name, now)
	if err == nil && !t.EnclaveTokens.Hold(token) {
		return nil, ErrUnknown
	}
	return t, err
}

// AdmitRequest is [Set.AdmitToEdge] and [Set.AdmitCertificate] for a request's
// tenant and Authorization headers ("Bearer <token>") and for what Envoy says of its
// client's certificate, given as they were received: each must have occurred once at
// most, and the tenant's name and one of the others must be there. What is there must
// be right.
func (s *Set) AdmitRequest(tenants, authorizations, sans []string, now time.Time) (t *Tenant, err error) {
	if len(tenants) != 1 || len(authorizations) > 1 || len(sans) > 1 || len(authorizations)+len(sans) == 0 {
		return nil, ErrUnknown
	}
	if len(sans) == 1 {
		if t, err = s.AdmitCertificate(tenants[0], SAN(sans[0]), now); err != nil {
			return nil, err
		}
	}
	if len(authorizations) == 1 {
		token, ok := strings.CutPrefix(authorizations[0], "Bearer ")
		if !ok {
			return nil, ErrUnknown
		}
		return s.AdmitToEdge(tenants[0], []byte(token), now)
	}
	return t, nil
}

// Active are the tenants that are not revoked, by name. It says nothing about
// expiry, which those who know the time decide ([Set.Find]).
func (s *Set) Active() []*Tenant {
	if s == nil {
		return nil
	}
	var active []*Tenant
	for _, t := range s.tenants {
		if !t.Revoked {
			active = append(active, t)
		}
	}
	slices.SortFunc(active, func(a, b *Tenant) int { return cmp.Compare(a.Name, b.Name) })
	return active
}

// Restriction is what somebody who cannot sign may still say of a tenant.
type Restriction struct {
	Name    string
	Blocked bool
	Models  Names
	Regions Names
	Limits  Limits // what is lower than signed holds
}

// Restrict gives the set in which a tenant may do only what both its signed
// rules and its restriction allow. A restriction of a tenant that is not in the
// set is none: nothing that is not signed makes a tenant.
func (s *Set) Restrict(by []Restriction) *Set {
	if s == nil || len(by) == 0 {
		return s
	}
	out := *s
	out.tenants = maps.Clone(s.tenants)
	for _, r := range by {
		signed, ok := out.tenants[r.Name]
		if !ok {
			continue
		}
		restricted := *signed
		restricted.Revoked = signed.Revoked || r.Blocked
		restricted.Models = signed.Models.And(r.Models)
		restricted.Regions = signed.Regions.And(r.Regions)
		restricted.Limits = signed.And(r.Limits)
		out.tenants[r.Name] = &restricted
	}
	return &out
}

// Limits of a list, so that nobody who checks one does unbounded work.
const (
	maxTenants     = 100_000
	maxTokens      = 8
	maxNames       = 256
	maxNameBytes   = 128
	maxListedBytes = 64 << 20
)

var tenantName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// check says what is wrong with a tenant by itself.
func (t *Tenant) check() error {
	if !tenantName.MatchString(t.Name) {
		return fmt.Errorf("tenant %.64q: want 1 to 63 of a-z, 0-9 and '-', no '-' at either end", t.Name)
	}
	for what, digests := range map[string]Digests{"edge": t.EdgeTokens, "enclave": t.EnclaveTokens} {
		if len(digests) == 0 && (what == "enclave" || len(t.SANs) == 0) || len(digests) > maxTokens {
			return fmt.Errorf("tenant %s: has %d %s tokens, want 1 to %d", t.Name, len(digests), what, maxTokens)
		}
	}
	if len(t.SANs) > maxSANs {
		return fmt.Errorf("tenant %s: %d sans, want at most %d", t.Name, len(t.SANs), maxSANs)
	}
	for i, san := range t.SANs {
		if err := san.check(); err != nil {
			return fmt.Errorf("tenant %s: sans[%d]: %w", t.Name, i, err)
		}
	}
	for what, names := range map[string]Names{"models": t.Models, "regions": t.Regions} {
		if len(names) > maxNames {
			return fmt.Errorf("tenant %s: %d %s, want at most %d", t.Name, len(names), what, maxNames)
		}
		for i, name := range names {
			if name == "" || len(name) > maxNameBytes || slices.Contains(names[:i], name) {
				return fmt.Errorf("tenant %s: %s[%d] is %.64q: want a name, once", t.Name, what, i, name)
			}
		}
	}
	if err := t.Check(); err != nil {
		return fmt.Errorf("tenant %s: %w", t.Name, err)
	}
	return nil
}

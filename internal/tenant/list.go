package tenant

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/dsse"
)

// List is what an operator writes and signs. Reading one is strict: an unknown
// field may be a rule that this program would not obey.
type List struct {
	// Version rises by one with each signature. Nobody takes an older list than
	// one that it has seen.
	Version uint64 `json:"version"`
	// ExpiresAt ends it: whoever withholds a newer list from a part of the
	// cluster gains no more than the time until then, and [Grace].
	ExpiresAt time.Time `json:"expires_at"`
	Tenants   []Tenant  `json:"tenants"`
}

// Marshal writes a list as a person can read it.
func (l *List) Marshal() ([]byte, error) {
	out, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("list of tenants: %w", err)
	}
	return append(out, '\n'), nil
}

// ParseList reads and checks a list.
func ParseList(data []byte) (*List, error) {
	var l List
	if err := strict(data, &l); err != nil {
		return nil, fmt.Errorf("list of tenants: %w", err)
	}
	if err := l.check(); err != nil {
		return nil, fmt.Errorf("list of tenants: %w", err)
	}
	return &l, nil
}

func strict(data []byte, into any) error {
	if len(data) > maxListedBytes {
		return fmt.Errorf("larger than %d bytes", maxListedBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the end")
	}
	return nil
}

// check also refuses a token or a certificate's name that two tenants share: either
// could act as the other.
func (l *List) check() error {
	if len(l.Tenants) > maxTenants {
		return fmt.Errorf("%d tenants, want at most %d", len(l.Tenants), maxTenants)
	}
	names, edge, enclave := map[string]bool{}, map[credential.Digest]bool{}, map[credential.Digest]bool{}
	sans := map[SAN]bool{}
	for i := range l.Tenants {
		t := &l.Tenants[i]
		if err := t.check(); err != nil {
			return err
		}
		if names[t.Name] {
			return fmt.Errorf("tenant %s is listed twice", t.Name)
		}
		names[t.Name] = true
		for _, san := range t.SANs {
			if sans[san] {
				return fmt.Errorf("tenant %s: san %s is listed twice", t.Name, san)
			}
			sans[san] = true
		}
		for seen, digests := range map[*map[credential.Digest]bool]Digests{&edge: t.EdgeTokens, &enclave: t.EnclaveTokens} {
			for _, d := range digests {
				if (*seen)[d] {
					return fmt.Errorf("tenant %s: token %s is listed twice", t.Name, d)
				}
				(*seen)[d] = true
			}
		}
	}
	return nil
}

// set is the list as those who serve requests ask it.
func (l *List) set() *Set {
	s := &Set{version: l.Version, expires: l.ExpiresAt, tenants: make(map[string]*Tenant, len(l.Tenants))}
	for i := range l.Tenants {
		s.tenants[l.Tenants[i].Name] = &l.Tenants[i]
	}
	return s
}

// PayloadType is what a signature is for: one made for anything else does not
// pass as one of a list of tenants.
const PayloadType = "application/vnd.mrgc.tenants+json"

// Sign checks a list and gives it as a signed file.
func Sign(key ed25519.PrivateKey, l *List) ([]byte, error) {
	if l.Version == 0 || l.ExpiresAt.IsZero() {
		return nil, errors.New("list of tenants: a list that is signed has a version and an expiry")
	}
	if err := l.check(); err != nil {
		return nil, fmt.Errorf("list of tenants: %w", err)
	}
	payload, err := json.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("list of tenants: %w", err)
	}
	out, err := dsse.Sign(key, PayloadType, payload)
	if err != nil {
		return nil, fmt.Errorf("list of tenants: %w", err)
	}
	return out, nil
}

// Verify gives the list of a signed file, if one of keys has signed it. Nothing
// of the list is read before. It says nothing about expiry.
func Verify(keys []ed25519.PublicKey, file []byte) (*List, error) {
	payload, err := dsse.Open(keys, PayloadType, file)
	if err != nil {
		return nil, fmt.Errorf("signed list of tenants: %w", err)
	}
	l, err := ParseList(payload)
	if err != nil {
		return nil, err
	}
	if l.Version == 0 || l.ExpiresAt.IsZero() {
		return nil, errors.New("signed list of tenants: has no version or no expiry")
	}
	return l, nil
}

// Package release is which releases of the enclave are to be trusted: a
// [Manifest] that the operator of the cluster signs, and what follows from it for
// a tenant's KMS key ([KeyPolicy]).
//
//	manifest, err := release.Verify(keys, file)
//	policy := attest.Policy{Releases: manifest.Releases, MinVersion: manifest.MinVersion, …}
//
// The manifest says what was built, with its measurements; whoever builds the
// same sources gets the same ones, and need not take the operator's word. A
// client may demand more than it says, never less.
//
// The package is pure: bytes in, bytes out.
package release

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/dsse"
)

// PayloadType is what a manifest's signature is for.
const PayloadType = "application/vnd.mrgc.releases+json"

// Manifest is what the operator signs.
type Manifest struct {
	// Version rises by one with each signature. Nobody takes an older manifest
	// than one that it has seen.
	Version uint64
	// MinVersion is the lowest release that is still trusted; it never falls.
	// Releases below it stay listed, for those who ask what once ran.
	MinVersion uint64
	Releases   []attest.Release
}

// wire is a manifest in JSON.
type wire struct {
	Version    uint64          `json:"version"`
	MinVersion uint64          `json:"min_version"`
	Releases   json.RawMessage `json:"releases"`
}

// Trusted are the releases that are not below the minimum.
func (m *Manifest) Trusted() []attest.Release {
	return slices.DeleteFunc(slices.Clone(m.Releases), func(r attest.Release) bool { return r.Version < m.MinVersion })
}

func (m *Manifest) check() error {
	switch {
	case m.Version == 0:
		return errors.New("manifest of releases: no version")
	case len(m.Releases) == 0:
		return errors.New("manifest of releases: no release")
	case len(m.Trusted()) == 0:
		return fmt.Errorf("manifest of releases: the minimum version %d is above every release", m.MinVersion)
	}
	return nil
}

// Sign checks a manifest and gives it as a signed file.
func Sign(key ed25519.PrivateKey, m *Manifest) ([]byte, error) {
	releases, err := json.Marshal(m.Releases)
	if err != nil {
		return nil, fmt.Errorf("manifest of releases: %w", err)
	}
	payload, err := json.Marshal(wire{Version: m.Version, MinVersion: m.MinVersion, Releases: releases})
	if err != nil {
		return nil, fmt.Errorf("manifest of releases: %w", err)
	}
	if _, err := parse(payload); err != nil { // what nobody would take is not signed
		return nil, err
	}
	file, err := dsse.Sign(key, PayloadType, payload)
	if err != nil {
		return nil, fmt.Errorf("manifest of releases: %w", err)
	}
	return file, nil
}

// Verify gives the manifest of a signed file, if one of keys has signed it.
func Verify(keys []ed25519.PublicKey, file []byte) (*Manifest, error) {
	payload, err := dsse.Open(keys, PayloadType, file)
	if err != nil {
		return nil, fmt.Errorf("signed manifest of releases: %w", err)
	}
	return parse(payload)
}

// parse reads strictly: a field that is not known here may be a rule.
func parse(payload []byte) (*Manifest, error) {
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.DisallowUnknownFields()
	var w wire
	if err := dec.Decode(&w); err != nil {
		return nil, fmt.Errorf("manifest of releases: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("manifest of releases: data after the end")
	}
	releases, err := attest.ParseReleases(w.Releases)
	if err != nil {
		return nil, fmt.Errorf("manifest of %w", err)
	}
	m := &Manifest{Version: w.Version, MinVersion: w.MinVersion, Releases: releases}
	return m, m.check()
}

// Follows says whether m may take the place of older, which may be nil.
func (m *Manifest) Follows(older *Manifest) error {
	switch {
	case older == nil:
		return nil
	case m.Version <= older.Version:
		return fmt.Errorf("manifest of releases: version %d, and %d has been seen", m.Version, older.Version)
	case m.MinVersion < older.MinVersion:
		return fmt.Errorf("manifest of releases: minimum version %d, and it was %d: it never falls", m.MinVersion, older.MinVersion)
	}
	return nil
}

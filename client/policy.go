package client

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/seal"
)

// Release is an enclave image that is trusted, by its measurements.
type Release = attest.Release

// ParseReleases reads a JSON array of releases, strictly:
//
//	[{"version": 7, "name": "2026-11", "pcrs": {"0": "f4d4…", "1": "bcdf…", "2": "d8f1…"}}]
func ParseReleases(data []byte) ([]Release, error) { return attest.ParseReleases(data) }

// Policy is what a tenant demands of the enclaves that get its requests. A
// server has no say in it.
type Policy struct {
	// Releases are the enclave images that are trusted, by their measurements, until
	// [Client.SetReleases] says otherwise.
	Releases []Release
	// MinVersion refuses releases below it.
	MinVersion uint64
	// Modes are the modes of isolation that are accepted: "process", "nitro",
	// "nitro+attested-host", "nitro+attested-host+gpu-cc" (docs/isolation.md says what
	// each claims); default: every mode with a Nitro Enclave. What is in another mode
	// is refused before anything is sealed to it.
	Modes []string
	// RecipientTypes are what requests may be sealed to, in whatever order: "enclave",
	// a key of one enclave's own, and "fleet", a key that all enclaves of a region
	// hold, which KMS releases to them. A fleet's key is for when none of the
	// enclaves that the client knows is there any more, or for who accepts nothing
	// else. Whoever administers the operator's KMS key could have it released to any
	// program, and whoever carries requests can say that enclaves are gone: so the
	// default is "enclave" alone.
	RecipientTypes []string
	// Regions that requests may go to, by short name; empty: all.
	Regions []string
	// NoAffinity sends no affinity key, so that whoever routes requests cannot
	// tell which of them belong to one conversation. Its turns then go to any
	// instance, which reads all of it again.
	NoAffinity bool
	// RequireReceipt refuses enclaves that sign no receipts, and answers that come
	// without one. A receipt that is there has to hold in any case.
	RequireReceipt bool
	// DevelopmentRoot, when set, is trusted in place of AWS's root, and the mode
	// "process" is accepted: nothing is protected from whoever runs the cluster.
	// It is for a cluster of one's own on one's own machine.
	DevelopmentRoot *x509.Certificate
}

// trust is which releases a client trusts now.
type trust struct {
	releases   []Release
	minVersion uint64
}

// SetReleases has the client trust other releases from now on, in the place of its
// policy's: for a roll-out, those before it and the new one; for a recall, all but that
// one. A minimum below the policy's own changes nothing about that. Recipients that were
// verified before and are of none of these releases get no further request; what has
// been sent goes on.
func (c *Client) SetReleases(releases []Release, minVersion uint64) error {
	now := &trust{releases: slices.Clone(releases), minVersion: max(minVersion, c.config.Policy.MinVersion)}
	policy := c.policy(now)
	if err := policy.check(); err != nil {
		return err
	}
	c.trust.Store(now)
	return nil
}

// policy is the client's with those releases.
func (c *Client) policy(by *trust) Policy {
	p := c.config.Policy
	p.Releases, p.MinVersion = by.releases, by.minVersion
	return p
}

func (p *Policy) check() error {
	if len(p.Releases) == 0 {
		return errors.New("client: no trusted releases: without measurements any program could pose as the enclave")
	}
	for _, mode := range p.Modes {
		if !slices.Contains(seal.Modes(), mode) {
			return fmt.Errorf("client: mode %q: want some of %s", mode, strings.Join(seal.Modes(), ", "))
		}
	}
	for _, t := range p.RecipientTypes {
		if t != seal.TypeEnclave.String() && t != seal.TypeFleet.String() {
			return fmt.Errorf("client: recipients of type %q: want %s or %s", t, seal.TypeEnclave, seal.TypeFleet)
		}
	}
	return nil
}

func (p *Policy) acceptsType(t seal.RecipientType) bool {
	if len(p.RecipientTypes) > 0 {
		return slices.Contains(p.RecipientTypes, t.String())
	}
	return t == seal.TypeEnclave
}

func (p *Policy) roots() []*x509.Certificate {
	if p.DevelopmentRoot != nil {
		return []*x509.Certificate{p.DevelopmentRoot}
	}
	return []*x509.Certificate{attest.AWSRoot()}
}

func (p *Policy) acceptsMode(mode string) bool { return slices.Contains(p.acceptedModes(), mode) }

func (p *Policy) acceptedModes() []string {
	switch {
	case len(p.Modes) > 0:
		return p.Modes
	case p.DevelopmentRoot != nil:
		return seal.Modes()
	default:
		return seal.Modes()[1:] // all but process
	}
}

// refusedMode says of a mode that is not accepted which ones are.
func (p *Policy) refusedMode(mode string) error {
	return fmt.Errorf("mode %q is not accepted, but %s", mode, strings.Join(p.acceptedModes(), ", "))
}

// verify gives the recipient if its attestation satisfies the policy.
func (p *Policy) verify(offered api.Recipient, model string, now time.Time) (*seal.Recipient, error) {
	recipient, err := seal.ParseRecipient(offered.Claims)
	if err != nil {
		return nil, err
	}
	claims := recipient.Claims()
	switch {
	case claims.Model != model:
		return nil, fmt.Errorf("serves %q", claims.Model)
	case !p.acceptsType(claims.Type):
		return nil, fmt.Errorf("recipients of type %s are not accepted", claims.Type)
	case !claims.ValidAt(now):
		return nil, errors.New("claims are not valid now")
	case !p.acceptsMode(claims.Mode):
		return nil, p.refusedMode(claims.Mode)
	case p.RequireReceipt && claims.ReceiptKey == nil:
		return nil, errors.New("it signs no receipts")
	case len(p.Regions) > 0 && !slices.Contains(p.Regions, claims.Region):
		return nil, fmt.Errorf("region %q is not accepted", claims.Region)
	}
	if _, err := p.attested(recipient, offered.Attestation, now); err != nil {
		return nil, err
	}
	return recipient, nil
}

// attested verifies the document that goes with a recipient's claims, as of now.
func (p *Policy) attested(r *seal.Recipient, document []byte, now time.Time) (*attest.Document, error) {
	region := fleet.Region(r.Claims().Region).AWS()
	if region == "" {
		return nil, fmt.Errorf("region %q is not known", r.Claims().Region)
	}
	digest := r.ClaimsDigest()
	return attest.Verify(document,
		attest.Policy{Roots: p.roots(), Releases: p.Releases, MinVersion: p.MinVersion},
		attest.Expected{UserData: digest[:], Region: region}, now)
}

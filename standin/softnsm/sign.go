package softnsm

import (
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/veraison/go-cose"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/nsm"
)

const (
	leafLifetime = 3 * time.Hour // as AWS's
	// renewBefore is how long before its end a leaf is replaced: far more than a
	// verifier's MaxAge, so that no fresh document meets an expired leaf.
	renewBefore = time.Hour
)

// signer signs documents under a chain like AWS's: root, region, zone,
// instance, and a leaf that it renews by itself.
type signer struct {
	now      func() time.Time
	moduleID string
	region   string
	bundle   [][]byte // root first, without the leaf
	instance authority

	mu   sync.Mutex
	leaf authority // renewed under mu, immutable once there
}

var plainName = regexp.MustCompile(`^[a-z0-9-]+$`)

func newSigner(c Config) (*signer, error) {
	if c.Root == nil {
		return nil, errors.New("Config.Root is missing")
	}
	if !plainName.MatchString(c.Region) {
		return nil, fmt.Errorf("Config.Region is %q, not like %q", c.Region, "us-east-1")
	}
	id := c.InstanceID
	if id == "" {
		id = "unknown"
	}
	kind := "-enc"
	if c.Host != nil {
		kind = "-tpm"
	}
	suffix := "." + c.Region + ".aws.nitro-enclaves"
	s := &signer{
		now:      c.Now,
		moduleID: id + kind + randomHex(),
		region:   c.Region,
		bundle:   [][]byte{c.Root.cert.Raw},
		instance: c.Root.authority,
	}
	names := []string{randomHex() + suffix, randomHex() + ".zonal" + suffix, id + suffix}
	for i, name := range names {
		a, err := issue(s.instance, c.Now(), authorityLifetime, func(cert *x509.Certificate) {
			cert.Subject = subject(name)
			cert.MaxPathLen, cert.MaxPathLenZero = len(names)-1-i, true
			cert.NotAfter = c.Root.cert.NotAfter
		})
		if err != nil {
			return nil, fmt.Errorf("issue %s: %w", name, err)
		}
		s.bundle = append(s.bundle, a.cert.Raw)
		s.instance = a
	}
	_, err := s.currentLeaf(c.Now())
	return s, err
}

// currentLeaf returns the leaf, a new one when the old one ends soon.
func (s *signer) currentLeaf(now time.Time) (authority, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaf.cert != nil && now.Before(s.leaf.cert.NotAfter.Add(-renewBefore)) {
		return s.leaf, nil
	}
	leaf, err := issue(s.instance, now, leafLifetime, func(cert *x509.Certificate) {
		cert.Subject = subject(s.moduleID + "." + s.region + ".aws")
		cert.IsCA = false
		cert.KeyUsage = x509.KeyUsageDigitalSignature
	})
	if err != nil {
		return authority{}, fmt.Errorf("issue leaf certificate: %w", err)
	}
	s.leaf = leaf
	return leaf, nil
}

// payload is the signed map, in the order in which AWS sends it
// (aws-nitro-enclaves-nsm-api, AttestationDoc).
type payload struct {
	ModuleID    string                  `cbor:"module_id"`
	Digest      string                  `cbor:"digest"`
	Timestamp   uint64                  `cbor:"timestamp"` // milliseconds since 1970
	PCRs        map[int]attest.HexBytes `cbor:"pcrs,omitempty"`
	HostPCRs    map[int]attest.HexBytes `cbor:"nitrotpm_pcrs,omitempty"` // of an instance's NitroTPM
	Certificate []byte                  `cbor:"certificate"`
	CABundle    [][]byte                `cbor:"cabundle"`
	PublicKey   []byte                  `cbor:"public_key"`
	UserData    []byte                  `cbor:"user_data"`
	Nonce       []byte                  `cbor:"nonce"`
}

// bankSize is how many registers a document shows; those without a value are
// zero, as on AWS.
const (
	bankSize     = 16
	hostBankSize = 24 // of a TPM
)

// bank fills up what has a value.
func bank(pcrs attest.PCRs, size int) attest.PCRs {
	all := make(attest.PCRs, size)
	for i := range size {
		all[i] = make([]byte, sha512.Size384)
		copy(all[i], pcrs[i])
	}
	return all
}

// document signs what a request wants in it, and the registers of content.
func (s *signer) document(content payload, r nsm.Request) ([]byte, error) {
	now := s.now()
	leaf, err := s.currentLeaf(now)
	if err != nil {
		return nil, err
	}
	content.ModuleID, content.Digest, content.Timestamp = s.moduleID, "SHA384", uint64(now.UnixMilli())
	content.Certificate, content.CABundle = leaf.cert.Raw, s.bundle
	content.PublicKey, content.UserData, content.Nonce = r.PublicKey, r.UserData, r.Nonce
	encoded, err := cbor.Marshal(content)
	if err != nil {
		return nil, fmt.Errorf("encode document: %w", err)
	}
	key, err := cose.NewSigner(cose.AlgorithmES384, leaf.key)
	if err != nil {
		return nil, fmt.Errorf("sign document: %w", err)
	}
	headers := cose.Headers{Protected: cose.ProtectedHeader{cose.HeaderLabelAlgorithm: cose.AlgorithmES384}}
	signed, err := cose.Sign1Untagged(rand.Reader, key, headers, encoded, nil)
	if err != nil {
		return nil, fmt.Errorf("sign document: %w", err)
	}
	return signed, nil
}

func subject(commonName string) pkix.Name {
	return pkix.Name{CommonName: commonName, Organization: []string{"MRGC"}, OrganizationalUnit: []string{"NOT AWS"}}
}

func randomHex() string {
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

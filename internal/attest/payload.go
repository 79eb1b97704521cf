package attest

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// Limits of the AWS attestation process, section 3.2.2.2.
const (
	maxPCRs        = 32
	maxBundle      = 8 // AWS sends four; a bound on chain building
	maxCertificate = 1024
	maxPublicKey   = 1024
	maxUserData    = 512
	maxNonce       = 512
)

// digestSHA384 is the only digest that a Nitro security module uses.
const digestSHA384 = "SHA384"

// payload is the signed CBOR map (attestation process, section 2.2).
type payload struct {
	ModuleID    string                `cbor:"module_id"`
	Digest      string                `cbor:"digest"`
	Timestamp   uint64                `cbor:"timestamp"` // milliseconds since 1970
	PCRs        map[uint64]byteString `cbor:"pcrs"`
	HostPCRs    map[uint64]byteString `cbor:"nitrotpm_pcrs"`
	Certificate byteString            `cbor:"certificate"`
	CABundle    []byteString          `cbor:"cabundle"` // root first
	PublicKey   byteString            `cbor:"public_key"`
	UserData    byteString            `cbor:"user_data"`
	Nonce       byteString            `cbor:"nonce"`
}

// moduleKind is whose registers a module signs: an enclave's, by the Nitro Security
// Module, or an instance's, by its NitroTPM. The documents differ in the name of one
// field, and neither may be taken for the other.
type moduleKind int

const (
	ofEnclave moduleKind = iota
	ofHost
)

// registers are those of a kind; others must not be there.
func (p *payload) registers(kind moduleKind) (is, others map[uint64]byteString) {
	if kind == ofHost {
		return p.HostPCRs, p.PCRs
	}
	return p.PCRs, p.HostPCRs
}

func parsePayload(raw []byte, kind moduleKind) (*payload, error) {
	indefinite := cbor.IndefLengthForbidden
	if kind == ofHost {
		indefinite = cbor.IndefLengthAllowed // NitroTPM signs its map like that
	}
	dec, err := strictDecMode(indefinite)
	if err != nil {
		return nil, err
	}
	var p payload
	if err := dec.Unmarshal(raw, &p); err != nil {
		return nil, err
	}
	if err := p.validate(kind); err != nil {
		return nil, err
	}
	return &p, nil
}

func (p *payload) validate(kind moduleKind) error {
	if p.ModuleID == "" {
		return errors.New("no module_id")
	}
	if p.Digest != digestSHA384 {
		return fmt.Errorf("digest is %q, not %s", p.Digest, digestSHA384)
	}
	if p.Timestamp == 0 || p.Timestamp > math.MaxInt64 {
		return fmt.Errorf("timestamp %d is out of range", p.Timestamp)
	}
	pcrs, others := p.registers(kind)
	switch {
	case others != nil && kind == ofHost:
		return errors.New("it has an enclave's pcrs, not an instance's")
	case others != nil:
		return errors.New("it has an instance's nitrotpm_pcrs, not an enclave's")
	case len(pcrs) == 0:
		return errors.New("no pcrs")
	}
	for i, v := range pcrs {
		if i >= maxPCRs {
			return fmt.Errorf("PCR%d: the index is above %d", i, maxPCRs-1)
		}
		if len(v) != pcrSize {
			return fmt.Errorf("PCR%d has %d bytes, not %d", i, len(v), pcrSize)
		}
	}
	if n := len(p.CABundle); n == 0 || n > maxBundle {
		return fmt.Errorf("cabundle of %d certificates, not 1 to %d", n, maxBundle)
	}
	for _, f := range []struct {
		name string
		b    byteString
		max  int
	}{
		{"public_key", p.PublicKey, maxPublicKey},
		{"user_data", p.UserData, maxUserData},
		{"nonce", p.Nonce, maxNonce},
	} {
		if len(f.b) > f.max {
			return fmt.Errorf("%s of %d bytes, more than %d", f.name, len(f.b), f.max)
		}
	}
	return nil
}

// document copies what a caller may read; the rest serves verification only.
func (p *payload) document(kind moduleKind) *Document {
	registers, _ := p.registers(kind)
	pcrs := make(PCRs, len(registers))
	for i, v := range registers {
		pcrs[int(i)] = HexBytes(v) // validate bounds i
	}
	return &Document{
		ModuleID:  p.ModuleID,
		Timestamp: time.UnixMilli(int64(p.Timestamp)).UTC(), // validate bounds it
		Digest:    p.Digest,
		PCRs:      pcrs,
		PublicKey: p.PublicKey,
		UserData:  p.UserData,
		Nonce:     p.Nonce,
	}
}

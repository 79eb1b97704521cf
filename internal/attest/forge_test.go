package attest_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/mrgc/mrgc/internal/attest"
)

// signedAt is when forged documents are signed, unless a test says otherwise.
var signedAt = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// Places in a forged chain, which is shaped like AWS's.
const (
	root = iota
	regional
	zonal
	instance
	leaf
	chainLength
)

// forge makes attestation documents that are valid but for what a test changes
// in it first. The hooks see the bytes at each step, so that one rule can be
// broken while all that is signed later still fits.
type forge struct {
	certs   [chainLength]*x509.Certificate // templates, root first
	keys    [chainLength]*ecdsa.PrivateKey
	payload map[string]any

	protected    []byte // header map, before it is wrapped
	unprotected  any
	editBundle   func(bundle [][]byte) [][]byte
	editPayload  func(signed []byte) []byte
	editSig      func(sig []byte) []byte
	editMessage  func(message []byte) []byte
	rootReplaced *x509.Certificate // pinned instead of the chain's own root
}

func newForge() *forge {
	f := &forge{
		protected:   []byte{0xa1, 0x01, 0x38, 0x22},
		unprotected: map[int]int{},
		payload: map[string]any{
			"module_id":  "i-0123456789abcdef0-enc0183d09086c24190",
			"digest":     "SHA384",
			"timestamp":  uint64(signedAt.UnixMilli()),
			"pcrs":       pcrs(),
			"public_key": []byte("public key"),
			"user_data":  []byte("hash of the claims"),
			"nonce":      []byte("nonce"),
		},
	}
	names := [chainLength]string{
		"test.root",
		"2f442bd2442676f0.us-east-1.aws.nitro-enclaves",
		"be9b7ab27d54882b.zonal.us-east-1.aws.nitro-enclaves",
		"i-0123456789abcdef0.us-east-1.aws.nitro-enclaves",
		"i-0123456789abcdef0-enc0183d09086c24190.us-east-1.aws",
	}
	for i := range f.certs {
		f.certs[i] = &x509.Certificate{
			SerialNumber:          big.NewInt(int64(i + 1)),
			Subject:               pkix.Name{CommonName: names[i]},
			NotBefore:             signedAt.Add(-time.Hour),
			NotAfter:              signedAt.Add(2 * time.Hour),
			KeyUsage:              x509.KeyUsageCertSign,
			BasicConstraintsValid: true,
			IsCA:                  true,
			MaxPathLen:            instance - i,
			MaxPathLenZero:        true,
		}
		f.keys[i] = newKey(elliptic.P384())
	}
	f.certs[root].MaxPathLen = -1
	f.certs[leaf].IsCA, f.certs[leaf].MaxPathLen, f.certs[leaf].MaxPathLenZero = false, -1, false
	f.certs[leaf].KeyUsage = x509.KeyUsageDigitalSignature
	return f
}

// pcrs are those of the enclave that forged documents speak of.
func pcrs() attest.PCRs {
	p := make(attest.PCRs)
	for i := range 16 {
		p[i] = make([]byte, 48)
	}
	for i := range 5 {
		p[i] = attest.ExtendedPCR([]byte{byte(i)})
	}
	return p
}

// release pins the image and the role of that enclave.
func release(version uint64) attest.Release {
	p := pcrs()
	return attest.Release{Version: version, Name: "test", PCRs: attest.PCRs{0: p[0], 1: p[1], 2: p[2], 3: p[3]}}
}

func expected() attest.Expected {
	return attest.Expected{UserData: []byte("hash of the claims"), Nonce: []byte("nonce"), Region: "us-east-1"}
}

// document makes the document and a policy that trusts its root.
func (f *forge) document() ([]byte, attest.Policy) {
	chain := f.issue()
	bundle := make([][]byte, 0, leaf)
	for _, c := range chain[:leaf] {
		bundle = append(bundle, c.Raw)
	}
	if f.editBundle != nil {
		bundle = f.editBundle(bundle)
	}
	setDefault(f.payload, "certificate", chain[leaf].Raw)
	setDefault(f.payload, "cabundle", bundle)
	payload := encode(f.payload)
	if f.editPayload != nil {
		payload = f.editPayload(payload)
	}

	toBeSigned := encode([]any{"Signature1", f.protected, []byte{}, payload})
	digest := sha512.Sum384(toBeSigned)
	r, s, err := ecdsa.Sign(rand.Reader, f.keys[leaf], digest[:])
	check(err)
	size := (f.keys[leaf].Params().BitSize + 7) / 8
	sig := append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
	if f.editSig != nil {
		sig = f.editSig(sig)
	}
	message := encode([]any{f.protected, f.unprotected, payload, sig})
	if f.editMessage != nil {
		message = f.editMessage(message)
	}
	pinned := chain[root]
	if f.rootReplaced != nil {
		pinned = f.rootReplaced
	}
	return message, attest.Policy{Roots: []*x509.Certificate{pinned}, Releases: []attest.Release{release(1)}}
}

func (f *forge) issue() [chainLength]*x509.Certificate {
	var chain [chainLength]*x509.Certificate
	for i, template := range f.certs {
		parent := max(i-1, root)
		der, err := x509.CreateCertificate(rand.Reader, template, f.certs[parent], f.keys[i].Public(), f.keys[parent])
		check(err)
		chain[i], err = x509.ParseCertificate(der)
		check(err)
	}
	return chain
}

func newKey(curve elliptic.Curve) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	check(err)
	return key
}

func encode(v any) []byte {
	mode, err := cbor.CoreDetEncOptions().EncMode()
	check(err)
	b, err := mode.Marshal(v)
	check(err)
	return b
}

func setDefault(m map[string]any, key string, value any) {
	if _, ok := m[key]; !ok {
		m[key] = value
	}
}

// check serves benchmarks and fuzz tests, too, so it does not use Gomega.
func check(err error) {
	if err != nil {
		panic(err)
	}
}

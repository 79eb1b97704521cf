package seal

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strconv"
)

// FleetSeedSize is the length of a fleet's seed: what KMS makes for AES_256.
const FleetSeedSize = 32

// FleetEpoch names a seed.
type FleetEpoch struct {
	Fleet  string // a name
	Region string // short name: use1
	Number uint64
}

// EncryptionContext is what KMS has made the seed with: it decrypts it for the
// same context only, so that none passes for another epoch's, fleet's or region's.
func (e FleetEpoch) EncryptionContext() map[string]string {
	return map[string]string{"mrgc:fleet": e.Fleet, "mrgc:region": e.Region, "mrgc:epoch": strconv.FormatUint(e.Number, 10)}
}

// NewFleetKey derives a recipient key of [TypeFleet], its claims, and the key that
// signs its receipts, from an epoch's seed. Whoever has the seed and gives the same
// claims gets the same ones, and so the same [KeyID]. It sets Type, KEM, KDF, AEAD,
// PublicKey, Region and ReceiptKey itself; all else is the caller's, and decides
// the keys, too: one model's opens nothing of another's. The seed stays the
// caller's to wipe.
func NewFleetKey(seed []byte, epoch FleetEpoch, claims Claims) (*RecipientKey, ed25519.PrivateKey, error) {
	if len(seed) != FleetSeedSize {
		return nil, nil, fmt.Errorf("fleet seed of %d bytes, want %d", len(seed), FleetSeedSize)
	}
	claims.Region = epoch.Region
	scope, err := epoch.scope(claims)
	if err != nil {
		return nil, nil, err
	}
	prk, err := hkdf.Extract(sha256.New, seed, nil)
	if err != nil {
		return nil, nil, err
	}
	defer clear(prk)
	private, err := hkdf.Expand(sha256.New, prk, labelFleetRecipient+scope, keySize)
	if err != nil {
		return nil, nil, err
	}
	defer clear(private)
	signing, err := hkdf.Expand(sha256.New, prk, labelFleetReceipts+scope, ed25519.SeedSize)
	if err != nil {
		return nil, nil, err
	}
	defer clear(signing)
	pair, err := hpke.MLKEM768X25519().NewPrivateKey(private)
	if err != nil {
		return nil, nil, fmt.Errorf("fleet key: %w", err)
	}
	receipts := ed25519.NewKeyFromSeed(signing)
	claims.ReceiptKey = receipts.Public().(ed25519.PublicKey)
	key, err := newRecipientKey(TypeFleet, pair, claims)
	return key, receipts, err
}

// scope is the hash of all that the keys are for, each after its length.
func (e FleetEpoch) scope(c Claims) (string, error) {
	notBefore, err := unixSeconds(c.NotBefore)
	if err != nil {
		return "", fmt.Errorf("claims: not before: %w", err)
	}
	notAfter, err := unixSeconds(c.NotAfter)
	if err != nil {
		return "", fmt.Errorf("claims: not after: %w", err)
	}
	u64 := func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
	var out []byte
	for _, field := range [][]byte{
		[]byte(e.Fleet), []byte(e.Region), u64(e.Number), []byte(c.Model), c.ManifestSHA256[:], []byte(c.Mode), u64(notBefore), u64(notAfter),
	} {
		out = binary.BigEndian.AppendUint32(out, uint32(len(field)))
		out = append(out, field...)
	}
	digest := sha256.Sum256(out)
	return string(digest[:]), nil
}

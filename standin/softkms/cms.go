package softkms

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"fmt"
)

// Object identifiers with tag and length.
var (
	oidEnvelopedData = []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x03}
	oidData          = []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01}
	oidRSAESOAEP     = []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x07}
	oidMGF1          = []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08}
	oidSHA256        = []byte{0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01}
	oidAES256CBC     = []byte{0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a}
)

// EncryptFor writes a CMS EnvelopedData message (RFC 5652) for an RSA key in the
// very encoding of KMS's CiphertextForRecipient: for a plaintext of 32 bytes it
// has the bytes of a real one but for identifier, encrypted key, initialisation
// vector and ciphertext.
func EncryptFor(key *rsa.PublicKey, plaintext []byte) ([]byte, error) {
	random := make([]byte, 32+aes.BlockSize)
	rand.Read(random) // never fails (crypto/rand)
	contentKey, iv := random[:32], random[32:]
	defer clear(contentKey)
	encryptedKey, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, key, contentKey, nil)
	if err != nil {
		return nil, fmt.Errorf("encrypt for the recipient: %w", err)
	}
	block, err := aes.NewCipher(contentKey)
	if err != nil {
		return nil, fmt.Errorf("encrypt for the recipient: %w", err)
	}
	padding := aes.BlockSize - len(plaintext)%aes.BlockSize
	padded := append(bytes.Clone(plaintext), bytes.Repeat([]byte{byte(padding)}, padding)...)
	defer clear(padded)
	content := make([]byte, len(padded))
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(content, padded)
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("encrypt for the recipient: %w", err)
	}
	keyID := sha256.Sum256(spki)

	sha256ID := definite(0x30, oidSHA256, []byte{0x05, 0x00})
	recipient := definite(0x30,
		[]byte{0x02, 0x01, 0x02},
		definite(0x80, keyID[:]),
		definite(0x30, oidRSAESOAEP, definite(0x30, definite(0xa0, sha256ID), definite(0xa1, definite(0x30, oidMGF1, sha256ID)))),
		definite(0x04, encryptedKey),
	)
	return indefinite(0x30, oidEnvelopedData, indefinite(0xa0, indefinite(0x30,
		[]byte{0x02, 0x01, 0x02},
		definite(0x31, recipient),
		indefinite(0x30, oidData, definite(0x30, oidAES256CBC, definite(0x04, iv)), indefinite(0xa0, definite(0x04, content))),
	))), nil
}

// definite is a BER value with its length in the shortest form.
func definite(tag byte, parts ...[]byte) []byte {
	contents := bytes.Join(parts, nil)
	n := len(contents)
	switch {
	case n < 0x80:
		return append([]byte{tag, byte(n)}, contents...)
	case n < 0x100:
		return append([]byte{tag, 0x81, byte(n)}, contents...)
	default:
		return append(binary.BigEndian.AppendUint16([]byte{tag, 0x82}, uint16(n)), contents...)
	}
}

// indefinite is a BER value of indefinite length (X.690, section 8.1.3.6).
func indefinite(tag byte, parts ...[]byte) []byte {
	return append(append([]byte{tag, 0x80}, bytes.Join(parts, nil)...), 0, 0)
}

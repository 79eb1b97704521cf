// Package cms opens what KMS returns for an attested enclave: the content of
// CiphertextForRecipient, a CMS EnvelopedData message (RFC 5652, section 6) for
// the RSA key in the enclave's attestation document.
//
//	plaintext, err := cms.Open(response.CiphertextForRecipient, key)
//	defer clear(plaintext)
//
// It reads the one shape that KMS writes and nothing else: version 2, one
// KeyTransRecipientInfo by subject key identifier, RSAES-OAEP with SHA-256 and
// MGF1 with SHA-256 (RFC 4055, section 4.1), and AES-256-CBC with PKCS #7
// padding. The encoding is BER with indefinite lengths (X.690, section 8.1.3.6),
// which encoding/asn1 does not read; no other library of this project's needs
// it, and the general ones do not know the subject key identifier. A length in
// more bytes than it needs, an unknown version, algorithm, parameter or field,
// and anything after the end are refused.
//
// AES-CBC authenticates nothing. Whoever can change the message between KMS and
// the enclave can change the plaintext: the message must come over TLS that ends
// in the enclave, and what it holds must be checked by its use (a key that opens
// an AES-GCM ciphertext is the right one). All failures that depend on the key
// are one error, [ErrOpen], and padding is checked in constant time.
//
// The package is part of the measured enclave: it imports the standard library
// only, does no I/O, and keeps nothing.
package cms

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rsa"
	"crypto/subtle"
	"errors"
	"fmt"
)

// Classes of errors, for errors.Is.
var (
	// ErrMalformed is a message that is not of the one shape. Its text says
	// where.
	ErrMalformed = errors.New("malformed CMS message")
	// ErrOpen is every failure that depends on the key. No detail, ever.
	ErrOpen = errors.New("CMS message cannot be opened")
)

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// MaxMessageBytes bounds a message before it is parsed. KMS returns at most 4096
// bytes of plaintext, and some 440 bytes around it.
const MaxMessageBytes = 8 << 10

const (
	keySize   = 32 // AES-256
	blockSize = aes.BlockSize
)

// Open gives the message's plaintext, whose memory is the caller's to wipe.
func Open(message []byte, key *rsa.PrivateKey) ([]byte, error) {
	m, err := parse(message)
	if err != nil {
		return nil, err
	}
	contentKey, err := key.Decrypt(nil, m.encryptedKey, &rsa.OAEPOptions{Hash: crypto.SHA256, MGFHash: crypto.SHA256})
	defer clear(contentKey)
	if err != nil || len(contentKey) != keySize {
		return nil, ErrOpen
	}
	block, err := aes.NewCipher(contentKey)
	if err != nil {
		return nil, ErrOpen
	}
	plaintext := make([]byte, len(m.content))
	cipher.NewCBCDecrypter(block, m.iv).CryptBlocks(plaintext, m.content)
	n, ok := unpadded(plaintext)
	if !ok {
		clear(plaintext)
		return nil, ErrOpen
	}
	return plaintext[:n], nil
}

// unpadded is the length without the padding of RFC 5652, section 6.3: n bytes
// of value n, 1 to 16. It takes as long whatever the padding is.
func unpadded(plaintext []byte) (int, bool) {
	last := int(plaintext[len(plaintext)-1])
	ok := subtle.ConstantTimeLessOrEq(1, last) & subtle.ConstantTimeLessOrEq(last, blockSize)
	for i := 1; i <= blockSize; i++ {
		isPadding := subtle.ConstantTimeLessOrEq(i, last)
		right := subtle.ConstantTimeByteEq(plaintext[len(plaintext)-i], byte(last))
		ok &= right | (1 - isPadding)
	}
	return len(plaintext) - last*ok, ok == 1
}

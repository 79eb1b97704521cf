package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"io"
)

// DataKey is a key that KMS made for one request (GenerateDataKey, AES_256) and
// that KMS alone can decrypt.
type DataKey struct {
	Plaintext  []byte // 32 bytes
	Ciphertext []byte // KMS's CiphertextBlob, 1 to 1024 bytes
}

// EncryptionContext is what the data key of a request must have been made with:
// KMS decrypts it for the same context only, and shows it in its own log.
func EncryptionContext(id RequestID, tenant string) map[string]string {
	return map[string]string{"mrgc:request-id": id.String(), "mrgc:tenant": tenant}
}

// DecryptDataKey has KMS decrypt a data key for the caller, a secret of whom
// attestation has told KMS. The plaintext is wiped by who called it.
type DecryptDataKey func(ciphertext []byte, context map[string]string) (plaintext []byte, err error)

const (
	kmsWrappedSize = nonceSize + keySize + tagSize
	maxDataKeySize = 1024 // what KMS returns for 32 bytes is some 200
)

// wrapper wraps the DEK once, by AES-256-GCM under the data key: the recipients
// differ by name only.
func (d *DataKey) wrapper(rand io.Reader, b *bound) (wrapFunc, error) {
	aead, err := d.aead()
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, nonceSize)
	if _, err := io.ReadFull(rand, nonce); err != nil {
		return nil, fmt.Errorf("draw nonce: %w", err)
	}
	return func(dek []byte, r *Recipient) (stanza, error) {
		wrapped := append(make([]byte, 0, kmsWrappedSize), nonce...)
		wrapped = aead.Seal(wrapped, nonce, dek, b.wrapContext(labelWrapKMS))
		return stanza{id: r.id, kind: TypeKMS, enc: d.Ciphertext, wrapped: wrapped}, nil
	}, nil
}

func (d *DataKey) check() error {
	if len(d.Plaintext) != keySize || len(d.Ciphertext) < 1 || len(d.Ciphertext) > maxDataKeySize {
		return malformed("data key of %d bytes, encrypted %d; want %d and 1 to %d", len(d.Plaintext), len(d.Ciphertext), keySize, maxDataKeySize)
	}
	return nil
}

func (d *DataKey) aead() (cipher.AEAD, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(d.Plaintext)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// unwrapByKMS gives the DEK of a recipient of TypeKMS.
func unwrapByKMS(s stanza, b *bound, decrypt DecryptDataKey) ([]byte, error) {
	if decrypt == nil {
		return nil, ErrNoKMS
	}
	plaintext, err := decrypt(s.enc, EncryptionContext(b.RequestID, b.Tenant))
	if err != nil {
		return nil, fmt.Errorf("data key: %w", err)
	}
	defer clear(plaintext)
	aead, err := (&DataKey{Plaintext: plaintext, Ciphertext: s.enc}).aead()
	if err != nil {
		return nil, ErrOpen
	}
	dek, err := aead.Open(nil, s.wrapped[:nonceSize], s.wrapped[nonceSize:], b.wrapContext(labelWrapKMS))
	if err != nil {
		return nil, ErrOpen
	}
	return dek, nil
}

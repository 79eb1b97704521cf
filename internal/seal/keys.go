package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
)

// Labels keep the uses of one key apart, and this protocol's from any other's.
const (
	labelWrap          = "mrgc-seal-1 wrap"
	labelWrapKMS       = "mrgc-seal-1 kms wrap"
	labelRequestKey    = "mrgc-seal-1 request key"
	labelRequestNonce  = "mrgc-seal-1 request nonce"
	labelCommitment    = "mrgc-seal-1 commitment"
	labelResponseKey   = "mrgc-seal-1 response key"
	labelResponseNonce = "mrgc-seal-1 response nonce"

	labelFleetRecipient = "mrgc-fleet-1 recipient"
	labelFleetReceipts  = "mrgc-fleet-1 receipts"
)

const (
	keySize        = 32 // DEK and AES-256 keys
	nonceSize      = 12
	tagSize        = 16
	wrappedSize    = keySize + tagSize
	commitmentSize = sha256.Size
)

// transcript is H: the hash of all that an envelope's meaning depends on.
type transcript [sha256.Size]byte

// keyCipher makes the cipher for one direction from the expanded labels.
// context is what follows the labels in HKDF's info.
func keyCipher(prk []byte, keyLabel, nonceLabel, context string) (*chunkCipher, error) {
	key, err := hkdf.Expand(sha256.New, prk, keyLabel+context, keySize)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	nonce, err := hkdf.Expand(sha256.New, prk, nonceLabel+context, nonceSize)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return &chunkCipher{aead: aead, base: [nonceSize]byte(nonce)}, nil
}

// requestKeys derives the request's cipher and the commitment to the DEK. The
// DEK enters HKDF as input keying material, thus through a collision-resistant
// hash: no two DEKs give one commitment, though AES-GCM alone would let one
// ciphertext open under two keys.
func requestKeys(dek []byte, h transcript) (*chunkCipher, []byte, error) {
	prk, err := hkdf.Extract(sha256.New, dek, nil)
	if err != nil {
		return nil, nil, err
	}
	defer clear(prk)
	commitment, err := hkdf.Expand(sha256.New, prk, labelCommitment+string(h[:]), commitmentSize)
	if err != nil {
		return nil, nil, err
	}
	chunks, err := keyCipher(prk, labelRequestKey, labelRequestNonce, string(h[:]))
	return chunks, commitment, err
}

// responseKeys derives the response's cipher for the recipient that answers.
func responseKeys(dek []byte, h transcript, id KeyID, responseNonce []byte) (*chunkCipher, error) {
	prk, err := hkdf.Extract(sha256.New, dek, responseNonce)
	if err != nil {
		return nil, err
	}
	defer clear(prk)
	return keyCipher(prk, labelResponseKey, labelResponseNonce, string(h[:])+string(id[:]))
}

const (
	chunkHeaderSize   = 1 + 2 // final, ciphertext length
	maxChunkPlaintext = 16384
)

// chunkCipher seals or opens the chunks of one direction, in order. As in
// draft-ietf-ohai-chunked-ohttp-08 a counter is in the nonce and the final chunk
// is marked under the tag.
type chunkCipher struct {
	aead     cipher.AEAD
	base     [nonceSize]byte
	sequence uint64

	// Scratch space, here because arguments to an interface's method escape.
	nonce [nonceSize]byte
	aad   [8 + 1]byte
}

// next prepares nonce and additional data of the next chunk.
func (c *chunkCipher) next(final bool) {
	binary.BigEndian.PutUint64(c.aad[:8], c.sequence)
	c.aad[8] = boolByte(final)
	c.nonce = c.base
	for i, b := range c.aad[:8] {
		c.nonce[nonceSize-8+i] ^= b
	}
	c.sequence++
}

// appendChunk seals plaintext, which holds at most maxChunkPlaintext bytes, and
// appends the chunk to dst.
func (c *chunkCipher) appendChunk(dst, plaintext []byte, final bool) []byte {
	c.next(final)
	dst = append(dst, boolByte(final))
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(plaintext)+tagSize))
	return c.aead.Seal(dst, c.nonce[:], plaintext, c.aad[:])
}

// open decrypts a chunk's ciphertext in its own memory.
func (c *chunkCipher) open(ciphertext []byte, final bool) ([]byte, error) {
	c.next(final)
	plaintext, err := c.aead.Open(ciphertext[:0], c.nonce[:], ciphertext, c.aad[:])
	if err != nil {
		return nil, ErrOpen
	}
	return plaintext, nil
}

func boolByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// parseChunkHeader reads a chunk's header; the length's range is the caller's
// to check.
func parseChunkHeader(header [chunkHeaderSize]byte) (final bool, length int, err error) {
	if header[0] > 1 {
		return false, 0, malformed("chunk's final flag is %d", header[0])
	}
	return header[0] == 1, int(binary.BigEndian.Uint16(header[1:])), nil
}

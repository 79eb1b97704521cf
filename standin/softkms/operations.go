package softkms

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"maps"
	"slices"
)

const symmetricDefault = "SYMMETRIC_DEFAULT"

// generateDataKey is GenerateDataKey.
func (x *exchange) generateDataKey(body []byte) (any, *apiError) {
	var in struct {
		KeyID             string            `json:"KeyId"`
		KeySpec           string            `json:"KeySpec"`
		NumberOfBytes     int               `json:"NumberOfBytes"`
		EncryptionContext map[string]string `json:"EncryptionContext"`
		Recipient         *recipient        `json:"Recipient"`
	}
	if refused := read(body, &in); refused != nil {
		return nil, refused
	}
	size, ok := map[string]int{"AES_256": 32, "AES_128": 16, "": in.NumberOfBytes}[in.KeySpec]
	if !ok || size < 1 || size > 1024 || in.KeySpec != "" && in.NumberOfBytes != 0 {
		return nil, errorf("ValidationException", "KeySpec or NumberOfBytes, one of them")
	}
	k, to, refused := x.admit("kms:GenerateDataKey", in.KeyID, in.EncryptionContext, in.Recipient)
	if refused != nil {
		return nil, refused
	}
	plaintext := make([]byte, size)
	defer clear(plaintext)
	rand.Read(plaintext) // never fails (crypto/rand)
	out, refused := x.release(plaintext, to)
	if refused != nil {
		return nil, refused
	}
	out["CiphertextBlob"] = k.seal(plaintext, in.EncryptionContext)
	return out, nil
}

// decrypt is Decrypt.
func (x *exchange) decrypt(body []byte) (any, *apiError) {
	var in struct {
		CiphertextBlob      []byte            `json:"CiphertextBlob"`
		EncryptionAlgorithm string            `json:"EncryptionAlgorithm"`
		EncryptionContext   map[string]string `json:"EncryptionContext"`
		KeyID               string            `json:"KeyId"`
		Recipient           *recipient        `json:"Recipient"`
	}
	if refused := read(body, &in); refused != nil {
		return nil, refused
	}
	if in.EncryptionAlgorithm != "" && in.EncryptionAlgorithm != symmetricDefault {
		return nil, errorf("InvalidKeyUsageException", "algorithm %.64q", in.EncryptionAlgorithm)
	}
	k, to, refused := x.admitBlob("kms:Decrypt", in.CiphertextBlob, in.KeyID, in.EncryptionContext, in.Recipient)
	if refused != nil {
		return nil, refused
	}
	plaintext, refused := k.open(in.CiphertextBlob, in.EncryptionContext)
	if refused != nil {
		return nil, refused
	}
	defer clear(plaintext)
	out, refused := x.release(plaintext, to)
	if refused != nil {
		return nil, refused
	}
	out["EncryptionAlgorithm"] = symmetricDefault
	return out, nil
}

// encrypt is Encrypt: whoever may do it can plant a data key that he knows.
func (x *exchange) encrypt(body []byte) (any, *apiError) {
	var in struct {
		EncryptionAlgorithm string            `json:"EncryptionAlgorithm"`
		EncryptionContext   map[string]string `json:"EncryptionContext"`
		KeyID               string            `json:"KeyId"`
		Plaintext           []byte            `json:"Plaintext"`
	}
	if refused := read(body, &in); refused != nil {
		return nil, refused
	}
	if len(in.Plaintext) < 1 || len(in.Plaintext) > 4096 || in.EncryptionAlgorithm != "" && in.EncryptionAlgorithm != symmetricDefault {
		return nil, errorf("ValidationException", "1 to 4096 bytes of Plaintext, by %s", symmetricDefault)
	}
	k, _, refused := x.admit("kms:Encrypt", in.KeyID, in.EncryptionContext, nil)
	if refused != nil {
		return nil, refused
	}
	return map[string]any{
		"CiphertextBlob": k.seal(in.Plaintext, in.EncryptionContext), "KeyId": x.event.Key, "EncryptionAlgorithm": symmetricDefault,
	}, nil
}

// reEncrypt is ReEncrypt: the one key's policy must allow kms:ReEncryptFrom, the
// other's kms:ReEncryptTo.
func (x *exchange) reEncrypt(body []byte) (any, *apiError) {
	var in struct {
		CiphertextBlob                 []byte            `json:"CiphertextBlob"`
		SourceKeyID                    string            `json:"SourceKeyId"`
		SourceEncryptionContext        map[string]string `json:"SourceEncryptionContext"`
		SourceEncryptionAlgorithm      string            `json:"SourceEncryptionAlgorithm"`
		DestinationKeyID               string            `json:"DestinationKeyId"`
		DestinationEncryptionContext   map[string]string `json:"DestinationEncryptionContext"`
		DestinationEncryptionAlgorithm string            `json:"DestinationEncryptionAlgorithm"`
	}
	if refused := read(body, &in); refused != nil {
		return nil, refused
	}
	from, _, refused := x.admitBlob("kms:ReEncryptFrom", in.CiphertextBlob, in.SourceKeyID, in.SourceEncryptionContext, nil)
	if refused != nil {
		return nil, refused
	}
	source := x.event.Key
	to, _, refused := x.admit("kms:ReEncryptTo", in.DestinationKeyID, in.DestinationEncryptionContext, nil)
	if refused != nil {
		return nil, refused
	}
	plaintext, refused := from.open(in.CiphertextBlob, in.SourceEncryptionContext)
	if refused != nil {
		return nil, refused
	}
	defer clear(plaintext)
	return map[string]any{
		"CiphertextBlob": to.seal(plaintext, in.DestinationEncryptionContext), "SourceKeyId": source, "KeyId": x.event.Key,
		"SourceEncryptionAlgorithm": symmetricDefault, "DestinationEncryptionAlgorithm": symmetricDefault,
	}, nil
}

// release gives a plaintext to whom it may be given: with a recipient, to its
// key alone.
func (x *exchange) release(plaintext []byte, to *attested) (map[string]any, *apiError) {
	out := map[string]any{"KeyId": x.event.Key}
	if to == nil {
		out["Plaintext"] = bytes.Clone(plaintext)
		return out, nil
	}
	message, err := EncryptFor(to.key, plaintext)
	if err != nil {
		return nil, errorf("KMSInternalException", "%v", err)
	}
	out["CiphertextForRecipient"] = message
	return out, nil
}

// A ciphertext blob is opaque to everyone but KMS. Here it is
//
//	version(1) ‖ length(1) ‖ key id ‖ nonce(12) ‖ AES-256-GCM
const blobVersion = 1

// admitBlob admits a call on the key that a blob names, which must be the one
// that the caller names, if it does.
func (x *exchange) admitBlob(action string, blob []byte, name string, context map[string]string, to *recipient) (*key, *attested, *apiError) {
	id, _, ok := splitBlob(blob)
	if !ok {
		return nil, nil, errorf("InvalidCiphertextException", "")
	}
	if name != "" {
		named, refused := x.service.find(name, x.event.Region)
		if refused != nil {
			return nil, nil, refused
		}
		if named.id != id {
			return nil, nil, errorf("IncorrectKeyException", "The key ID in the request does not identify a CMK that can perform this operation.")
		}
	}
	return x.admit(action, id, context, to)
}

func splitBlob(blob []byte) (id string, sealed []byte, ok bool) {
	if len(blob) < 2 || blob[0] != blobVersion || len(blob) < 2+int(blob[1]) {
		return "", nil, false
	}
	end := 2 + int(blob[1])
	return string(blob[2:end]), blob[end:], true
}

func (k *key) aead() cipher.AEAD {
	block, err := aes.NewCipher(k.material[:])
	if err != nil {
		panic(err) // 32 bytes are a key
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return aead
}

func (k *key) seal(plaintext []byte, context map[string]string) []byte {
	aead := k.aead()
	blob := append([]byte{blobVersion, byte(len(k.id))}, k.id...)
	nonce := make([]byte, aead.NonceSize())
	rand.Read(nonce) // never fails (crypto/rand)
	blob = append(blob, nonce...)
	return aead.Seal(blob, nonce, plaintext, encodeContext(context))
}

func (k *key) open(blob []byte, context map[string]string) ([]byte, *apiError) {
	aead := k.aead()
	_, sealed, ok := splitBlob(blob)
	if !ok || len(sealed) < aead.NonceSize() {
		return nil, errorf("InvalidCiphertextException", "")
	}
	nonce, ciphertext := sealed[:aead.NonceSize()], sealed[aead.NonceSize():]
	plaintext, err := aead.Open(nil, nonce, ciphertext, encodeContext(context))
	if err != nil {
		return nil, errorf("InvalidCiphertextException", "")
	}
	return plaintext, nil
}

// encodeContext gives each context its own bytes: sorted, each part after its
// length.
func encodeContext(context map[string]string) []byte {
	var out []byte
	for _, name := range slices.Sorted(maps.Keys(context)) {
		for _, text := range []string{name, context[name]} {
			out = binary.BigEndian.AppendUint32(out, uint32(len(text)))
			out = append(out, text...)
		}
	}
	return out
}

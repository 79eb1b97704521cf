package dsse

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

const (
	publicBlock  = "PUBLIC KEY"
	privateBlock = "PRIVATE KEY"
)

// MarshalKey gives a signing key (PKCS #8) and what verifies it (PKIX), in PEM.
func MarshalKey(key ed25519.PrivateKey) (private, public []byte, err error) {
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("signing key: %w", err)
	}
	defer clear(secret)
	open, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, nil, fmt.Errorf("signing key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: privateBlock, Bytes: secret}), pem.EncodeToMemory(&pem.Block{Type: publicBlock, Bytes: open}), nil
}

// ParseSigningKey reads the PEM of an Ed25519 private key. Its error repeats
// nothing of it.
func ParseSigningKey(data []byte) (ed25519.PrivateKey, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != privateBlock {
		return nil, errors.New("signing key: not PEM with a " + privateBlock)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("signing key: not PKCS #8")
	}
	signing, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, errors.New("signing key: not an Ed25519 key")
	}
	return signing, nil
}

// ParseVerificationKeys reads the PEM of one or more Ed25519 public keys: two
// while a signing key is replaced.
func ParseVerificationKeys(data []byte) ([]ed25519.PublicKey, error) {
	var keys []ed25519.PublicKey
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != publicBlock {
			return nil, fmt.Errorf("verification key: a %s where a %s is wanted", block.Type, publicBlock)
		}
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("verification key: %w", err)
		}
		verifying, ok := key.(ed25519.PublicKey)
		if !ok {
			return nil, errors.New("verification key: not an Ed25519 key")
		}
		keys = append(keys, verifying)
	}
	if len(keys) == 0 {
		return nil, errors.New("verification key: not PEM with a " + publicBlock)
	}
	return keys, nil
}

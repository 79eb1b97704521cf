// Package kms is what an enclave asks of AWS KMS: Decrypt and GenerateDataKey,
// each with a Recipient, by which KMS releases a data key to an enclave whose
// attestation satisfies the key's policy, and to nobody else.
//
//	client, err := kms.New(kms.Config{Region: "us-east-1", Dial: dial, NSM: module})
//	client.SetCredentials(credentials)
//	dataKey, err := client.Decrypt(ctx, ciphertext, encryptionContext)
//	defer clear(dataKey)
//
// Signature and TLS end here (package awscall). The credentials, which come from
// the parent, open nothing without the attestation.
//
// Each call has an RSA key of its own, made ahead of it, of which the
// attestation document tells KMS, and which is wiped after the call: KMS takes a
// document for as long as it is fresh, from whoever sends it. What cannot be
// wiped are the copies that crypto/rsa keeps inside of the key; they go with the
// garbage collector, and no later than with the enclave's memory.
//
// The package is part of the measured enclave. It logs nothing, and no error
// carries a key.
package kms

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/mrgc/mrgc/internal/awscall"
	"github.com/mrgc/mrgc/internal/cms"
	"github.com/mrgc/mrgc/internal/nsm"
)

// Classes of errors of a [Client]'s calls, for errors.Is.
var (
	// ErrDenied is KMS's refusal: the key's policy does not let this enclave, or
	// these credentials, use it, or the key is disabled or not there.
	ErrDenied = errors.New("KMS refuses")
	// ErrCiphertext is a ciphertext that KMS cannot decrypt, or not in this
	// context, or not by the key that was named.
	ErrCiphertext = errors.New("not a ciphertext of KMS for this context")
	// ErrUnavailable is everything that may be over when it is tried again: no
	// connection, no credentials, no attestation, throttling, an answer that is
	// none.
	ErrUnavailable = errors.New("KMS cannot be asked")
)

// Credentials are of AWS.
type Credentials = awscall.Credentials

// Config says where KMS is, and who asks.
type Config struct {
	Region string // of AWS: "us-east-1". Required
	Host   string // default: kms.REGION.amazonaws.com
	// Dial connects to port 443 of Host, as bytes. Required.
	Dial func(context.Context) (net.Conn, error)
	NSM  nsm.Module // required
	// Roots verify Host's certificate; nil: Amazon's.
	Roots *x509.CertPool
	Now   func() time.Time // default: time.Now
}

// Client asks one region's KMS. It is safe for concurrent use.
type Client struct {
	*awscall.Client

	nsm  nsm.Module
	keys keyPool
}

// New makes a client, and its first RSA key in the background. It connects to
// nothing yet.
func New(config Config) (*Client, error) {
	if config.NSM == nil {
		return nil, errors.New("kms: want a security module")
	}
	caller, err := awscall.New(awscall.Config{
		Service: awscall.KMS, Region: config.Region, Host: config.Host, Dial: config.Dial, Roots: config.Roots, Now: config.Now,
	})
	if err != nil {
		return nil, fmt.Errorf("kms: %w", err)
	}
	c := &Client{Client: caller, nsm: config.NSM}
	c.keys.init()
	return c, nil
}

// timeout bounds a call and the attestation before it, unless its context ends
// sooner.
const timeout = 5 * time.Second

const keyEncryption = "RSAES_OAEP_SHA_256"

// recipient is the Recipient parameter (AWS KMS API reference).
type recipient struct {
	AttestationDocument    []byte `json:"AttestationDocument"`
	KeyEncryptionAlgorithm string `json:"KeyEncryptionAlgorithm"`
}

// decryptRequest is Decrypt's parameters (AWS KMS API reference). Without a key
// the ciphertext names it, and its policy decides.
type decryptRequest struct {
	KeyID             string            `json:"KeyId,omitempty"`
	CiphertextBlob    []byte            `json:"CiphertextBlob"`
	EncryptionContext map[string]string `json:"EncryptionContext,omitempty"`
	Recipient         recipient         `json:"Recipient"`
}

// generateRequest is GenerateDataKey's.
type generateRequest struct {
	KeyID             string            `json:"KeyId"`
	KeySpec           string            `json:"KeySpec"`
	EncryptionContext map[string]string `json:"EncryptionContext,omitempty"`
	Recipient         recipient         `json:"Recipient"`
}

// answer is what is read of either's answer. Plaintext is not for us: who asks
// with a Recipient gets none.
type answer struct {
	CiphertextForRecipient []byte `json:"CiphertextForRecipient"`
	CiphertextBlob         []byte `json:"CiphertextBlob"` // of GenerateDataKey
}

// Decrypt gives the plaintext of a ciphertext of KMS, by whatever key it is of.
// The plaintext's memory is the caller's to wipe. Errors are of the classes above.
func (c *Client) Decrypt(ctx context.Context, ciphertext []byte, encryptionContext map[string]string) ([]byte, error) {
	return c.DecryptBy(ctx, "", ciphertext, encryptionContext)
}

// DecryptBy is Decrypt by that key alone: a ciphertext of another key's is
// ErrCiphertext. Who may name any key can plant a plaintext that he knows, by a key
// of his own.
func (c *Client) DecryptBy(ctx context.Context, keyARN string, ciphertext []byte, encryptionContext map[string]string) ([]byte, error) {
	plaintext, _, err := c.ask(ctx, "Decrypt", func(r recipient) any {
		return decryptRequest{KeyID: keyARN, CiphertextBlob: ciphertext, EncryptionContext: encryptionContext, Recipient: r}
	})
	return plaintext, err
}

// GenerateDataKey has KMS make 32 random bytes, which only it and this enclave
// know, and give them encrypted under a key, too. The plaintext's memory is the
// caller's to wipe. Errors are of the classes above.
func (c *Client) GenerateDataKey(ctx context.Context, keyARN string, encryptionContext map[string]string) (plaintext, ciphertext []byte, err error) {
	plaintext, ciphertext, err = c.ask(ctx, "GenerateDataKey", func(r recipient) any {
		return generateRequest{KeyID: keyARN, KeySpec: "AES_256", EncryptionContext: encryptionContext, Recipient: r}
	})
	if err == nil && len(ciphertext) == 0 {
		clear(plaintext)
		return nil, nil, fmt.Errorf("%w: its answer has no ciphertext", ErrUnavailable)
	}
	return plaintext, ciphertext, err
}

// ask makes one call, as a recipient of its own.
func (c *Client) ask(ctx context.Context, operation string, request func(recipient) any) (plaintext, ciphertext []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	key, err := c.keys.take()
	if err != nil {
		return nil, nil, fmt.Errorf("%w: make a key: %w", ErrUnavailable, err)
	}
	defer c.keys.refill()
	defer wipe(key)
	to, err := c.recipient(ctx, key.Public())
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	var said answer
	if err := c.Call(ctx, operation, request(to), &said); err != nil {
		return nil, nil, classify(err)
	}
	if len(said.CiphertextForRecipient) == 0 {
		return nil, nil, fmt.Errorf("%w: its answer has no ciphertext for the recipient", ErrUnavailable)
	}
	plaintext, err = openAnswer(said.CiphertextForRecipient, key)
	return plaintext, said.CiphertextBlob, err
}

func openAnswer(message []byte, key *rsa.PrivateKey) ([]byte, error) {
	plaintext, err := cms.Open(message, key)
	if err != nil {
		return nil, fmt.Errorf("%w: its answer: %w", ErrUnavailable, err)
	}
	return plaintext, nil
}

func (c *Client) recipient(ctx context.Context, public crypto.PublicKey) (recipient, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return recipient{}, err
	}
	document, err := c.nsm.Attest(ctx, nsm.Request{PublicKey: der})
	if err != nil {
		return recipient{}, fmt.Errorf("attest the key: %w", err)
	}
	return recipient{AttestationDocument: document, KeyEncryptionAlgorithm: keyEncryption}, nil
}

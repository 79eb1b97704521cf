// Package kms is the one call of AWS KMS that an enclave makes: Decrypt with a
// Recipient, by which KMS releases a data key to an enclave whose attestation
// satisfies the key's policy, and to nobody else.
//
//	client, err := kms.New(kms.Config{Region: "us-east-1", Dial: dial, NSM: module})
//	client.SetCredentials(credentials)
//	dataKey, err := client.Decrypt(ctx, ciphertext, encryptionContext)
//	defer clear(dataKey)
//
// Signature and TLS end here. Dial gives a pipe that the parent carries, who
// sees TLS records; TLS trusts Amazon's own roots only, which are part of the
// measured image. Credentials come from the parent, too: they say on whose behalf
// KMS is asked, and open nothing without the attestation.
//
// Each call has an RSA key of its own, made ahead of it, of which the
// attestation document tells KMS, and which is wiped after the call: KMS takes a
// document for as long as it is fresh, from whoever sends it. What cannot be
// wiped are the copies that crypto/rsa keeps inside of the key; they go with the
// garbage collector, and no later than with the enclave's memory.
//
// Why it is not the AWS SDK: that brings some 60 packages, with endpoint rules,
// credential chains, retries and plug-ins, into a binary of which every line must
// be trusted. One request that is always of the same shape takes an HMAC and a
// hash. Tests hold it against the SDK's own signer, and against a KMS that
// checks with that.
//
// The package is part of the measured enclave. It logs nothing, and no error
// carries a key.
package kms

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	_ "embed" // for Amazon's roots
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/mrgc/mrgc/internal/cms"
	"github.com/mrgc/mrgc/internal/nsm"
)

// Classes of errors of [Client.Decrypt], for errors.Is.
var (
	// ErrDenied is KMS's refusal: the key's policy does not let this enclave, or
	// these credentials, decrypt, or the key is disabled or not there.
	ErrDenied = errors.New("KMS refuses")
	// ErrCiphertext is a ciphertext that KMS cannot decrypt, or not in this
	// context.
	ErrCiphertext = errors.New("not a ciphertext of KMS for this context")
	// ErrUnavailable is everything that may be over when it is tried again: no
	// connection, no credentials, no attestation, throttling, an answer that is
	// none.
	ErrUnavailable = errors.New("KMS cannot be asked")
)

// Credentials are of AWS.
type Credentials struct {
	AccessKeyID, SecretAccessKey string
	SessionToken                 string // of temporary ones; empty: none
}

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
	config      Config
	http        *http.Client
	keys        keyPool
	credentials atomic.Pointer[Credentials]
}

//go:embed amazon-roots.pem
var amazonRoots []byte

// AmazonRoots are the roots of Amazon Trust Services, G1 to G4, that certify
// AWS's endpoints.
func AmazonRoots() *x509.CertPool {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(amazonRoots) {
		panic("kms: embedded roots") // no input reaches this; a test parses them
	}
	return pool
}

// New makes a client, and its first RSA key in the background. It connects to
// nothing yet.
func New(config Config) (*Client, error) {
	if config.Region == "" || config.Dial == nil || config.NSM == nil {
		return nil, errors.New("kms: want a region, a way to dial and a security module")
	}
	config.Host = cmp.Or(config.Host, "kms."+config.Region+".amazonaws.com")
	config.Roots = cmp.Or(config.Roots, AmazonRoots())
	if config.Now == nil {
		config.Now = time.Now
	}
	c := &Client{config: config, http: &http.Client{
		Transport: &http.Transport{
			DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return config.Dial(ctx) },
			TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: config.Roots, ServerName: config.Host, Time: config.Now},
			TLSHandshakeTimeout: timeout,
			MaxIdleConnsPerHost: 16,
			IdleConnTimeout:     time.Minute,
			DisableCompression:  true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	c.keys.init()
	return c, nil
}

// CloseIdleConnections closes connections that no call uses.
func (c *Client) CloseIdleConnections() { c.http.CloseIdleConnections() }

// SetCredentials has calls signed with these from now on.
func (c *Client) SetCredentials(credentials Credentials) { c.credentials.Store(&credentials) }

// AccessKeyID names the credentials that are held; empty: none yet.
func (c *Client) AccessKeyID() string {
	if held := c.credentials.Load(); held != nil {
		return held.AccessKeyID
	}
	return ""
}

const (
	// timeout bounds a call, unless its context ends sooner. KMS answers in 100 ms.
	timeout = 5 * time.Second
	// maxAnswerBytes is above what KMS returns for a data key.
	maxAnswerBytes = 64 << 10

	keyEncryption = "RSAES_OAEP_SHA_256"
)

// decryptRequest is Decrypt's parameters (AWS KMS API reference). The key is
// not among them: the ciphertext names it, and its policy decides.
type decryptRequest struct {
	CiphertextBlob    []byte            `json:"CiphertextBlob"`
	EncryptionContext map[string]string `json:"EncryptionContext,omitempty"`
	Recipient         struct {
		AttestationDocument    []byte `json:"AttestationDocument"`
		KeyEncryptionAlgorithm string `json:"KeyEncryptionAlgorithm"`
	} `json:"Recipient"`
}

// decryptAnswer is what is read of Decrypt's answer. Plaintext is not for us:
// who asks with a Recipient gets none.
type decryptAnswer struct {
	CiphertextForRecipient []byte `json:"CiphertextForRecipient"`
}

// Decrypt gives the plaintext of a ciphertext of KMS, whose memory is the
// caller's to wipe. Errors are of the classes above.
func (c *Client) Decrypt(ctx context.Context, ciphertext []byte, encryptionContext map[string]string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	key, err := c.keys.take()
	if err != nil {
		return nil, fmt.Errorf("%w: make a key: %w", ErrUnavailable, err)
	}
	defer c.keys.refill()
	defer wipe(key)
	body, err := c.requestBody(ctx, key.Public(), ciphertext, encryptionContext)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	message, err := c.call(ctx, body)
	if err != nil {
		return nil, err
	}
	return openAnswer(message, key)
}

func openAnswer(message []byte, key *rsa.PrivateKey) ([]byte, error) {
	plaintext, err := cms.Open(message, key)
	if err != nil {
		return nil, fmt.Errorf("%w: its answer: %w", ErrUnavailable, err)
	}
	return plaintext, nil
}

func (c *Client) requestBody(ctx context.Context, public crypto.PublicKey, ciphertext []byte, encryptionContext map[string]string) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, err
	}
	document, err := c.config.NSM.Attest(ctx, nsm.Request{PublicKey: der})
	if err != nil {
		return nil, fmt.Errorf("attest the key: %w", err)
	}
	request := decryptRequest{CiphertextBlob: ciphertext, EncryptionContext: encryptionContext}
	request.Recipient.AttestationDocument, request.Recipient.KeyEncryptionAlgorithm = document, keyEncryption
	return json.Marshal(request)
}

// call sends Decrypt and gives CiphertextForRecipient.
func (c *Client) call(ctx context.Context, body []byte) ([]byte, error) {
	credentials := c.credentials.Load()
	if credentials == nil {
		return nil, fmt.Errorf("%w: no credentials yet", ErrUnavailable)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+c.config.Host+"/", bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	req.Header["Idempotency-Key"] = nil // lets net/http send it again when an idle connection turns out to be dead; it is not sent itself
	sign(req, body, *credentials, c.config.Region, c.config.Now())
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(http.MaxBytesReader(nil, resp.Body, maxAnswerBytes))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, refusal(resp.StatusCode, text)
	}
	var answer decryptAnswer
	if err := json.Unmarshal(text, &answer); err != nil || len(answer.CiphertextForRecipient) == 0 {
		return nil, fmt.Errorf("%w: its answer has no ciphertext for the recipient", ErrUnavailable)
	}
	return answer.CiphertextForRecipient, nil
}
